/* A stand-in for AMD's management library, libamd_smi.so, playing the machine in $AMD_SCRIPT (see nvml_stand_in.c).
 * What it does not play, the test's builder adds as functions that are not supported: the real Python package looks for
 * every function when it is imported.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { OK = 0, NOT_SUPPORTED = 2 };
#define MOST_GPUS 8
typedef unsigned long long u64;
static int gpus[MOST_GPUS];

static int text_of(int gpu, const char *field, const char *otherwise, char *out, size_t size) {
  const char *path = getenv("AMD_SCRIPT");
  FILE *file = path ? fopen(path, "r") : NULL;
  char line[512], name[96], every[96];
  int found = 0;
  if (gpu < 0) snprintf(name, sizeof name, "%s", field);
  else snprintf(name, sizeof name, "gpu%d.%s", gpu, field);
  snprintf(every, sizeof every, "gpu.%s", field);
  if (file) {
    while (fgets(line, sizeof line, file)) {
      line[strcspn(line, "\n")] = 0;
      char *value = strchr(line, ' ');
      if (!value) continue;
      *value++ = 0;
      if (!strcmp(line, name) || (!found && gpu >= 0 && !strcmp(line, every))) {
        snprintf(out, size, "%s", value);
        found = 1;
      }
    }
    fclose(file);
  }
  if (!found) {
    if (!otherwise) return NOT_SUPPORTED;
    snprintf(out, size, "%s", otherwise);
  }
  return out[0] == '!' ? atoi(out + 1) : OK;
}
static int number_of(int gpu, const char *field, const char *otherwise, u64 *out) {
  char value[64];
  int code = text_of(gpu, field, otherwise, value, sizeof value);
  if (code == OK) *out = strtoull(value, NULL, 0);
  return code;
}

int amdsmi_init(u64 flags) { u64 unused; (void)flags; return number_of(-1, "init", "0", &unused); }
int amdsmi_shut_down(void) { return OK; }
int amdsmi_get_socket_handles(unsigned *count, void **out) {
  u64 found = 0;
  number_of(-1, "gpus", "1", &found);
  for (unsigned i = 0; out && i < found && i < MOST_GPUS; i++) { gpus[i] = (int)i; out[i] = &gpus[i]; }
  *count = (unsigned)found;
  return OK;
}
int amdsmi_get_processor_handles(void *socket, unsigned *count, void **out) {
  if (out) out[0] = socket;
  *count = 1;
  return OK;
}
struct enumeration { unsigned render, card, hsa, hip; char uuid[256]; };
int amdsmi_get_gpu_enumeration_info(int *gpu, struct enumeration *out) {
  u64 render = 0;
  char own[32], node[8];
  memset(out, 0, sizeof *out);
  snprintf(own, sizeof own, "GPU-%016x", 0xabc0 + *gpu);
  snprintf(node, sizeof node, "%d", 128 + *gpu);
  int code = number_of(*gpu, "render", node, &render);
  out->render = (unsigned)render;
  return code ? code : text_of(*gpu, "uuid", own, out->uuid, sizeof out->uuid);
}
struct chip { char name[256]; unsigned vendor; char vendor_name[256]; unsigned subvendor; u64 device; unsigned revision;
  char serial[256]; unsigned oam, units, padding; u64 version; unsigned subsystem, reserved[21]; };
int amdsmi_get_gpu_asic_info(int *gpu, struct chip *out) {
  memset(out, 0, sizeof *out);
  strcpy(out->vendor_name, "AMD");
  strcpy(out->serial, "0x1234");
  out->version = 0x942;
  return text_of(*gpu, "name", "AMD Instinct MI300X", out->name, sizeof out->name);
}
struct vram { unsigned total, used, reserved[2]; };
int amdsmi_get_gpu_vram_usage(int *gpu, struct vram *out) {
  u64 total = 0, used = 0;
  int code = number_of(*gpu, "memory_mb", "196608", &total);
  number_of(*gpu, "used_mb", "0", &used);
  out->total = (unsigned)total; out->used = (unsigned)used;
  return code;
}
struct busy { unsigned gfx, umc, mm, reserved[13]; };
int amdsmi_get_gpu_activity(int *gpu, struct busy *out) {
  u64 gfx = 0;
  int code = number_of(*gpu, "busy", NULL, &gfx);
  memset(out, 0, sizeof *out);
  out->gfx = (unsigned)gfx; out->umc = 0xFFFF;
  return code;
}
int amdsmi_get_temp_metric(int *gpu, unsigned sensor, unsigned metric, long long *out) {
  char name[32];
  u64 found = 0;
  (void)metric;
  snprintf(name, sizeof name, "temperature%u", sensor);
  int code = number_of(*gpu, name, NULL, &found);
  *out = (long long)found;
  return code;
}
struct power { u64 socket; unsigned now, average; u64 gfx, soc, memory; unsigned limit, padding; u64 reserved[18]; };
int amdsmi_get_power_info(int *gpu, struct power *out) {
  memset(out, 0, sizeof *out);
  return number_of(*gpu, "power_w", NULL, &out->socket);
}
struct errors { u64 corrected, uncorrected, deferred, reserved[5]; };
int amdsmi_get_gpu_total_ecc_count(int *gpu, struct errors *out) {
  memset(out, 0, sizeof *out);
  number_of(*gpu, "ecc_corrected", "0", &out->corrected);
  return number_of(*gpu, "ecc_uncorrected", NULL, &out->uncorrected);
}
struct driver { char version[256], date[256], name[256]; };
int amdsmi_get_gpu_driver_info(int *gpu, struct driver *out) {
  memset(out, 0, sizeof *out);
  strcpy(out->name, "amdgpu");
  return text_of(*gpu, "driver", "6.14", out->version, sizeof out->version);
}
struct process { char name[256]; unsigned pid, padding; u64 memory, gfx, enc; unsigned reserved1[12]; u64 gtt, cpu, vram;
  unsigned reserved2[10]; char container[256]; unsigned occupancy, reserved3[11]; };
int amdsmi_get_gpu_process_list(int *gpu, unsigned *count, struct process *out) {
  char value[256], *rest = value, *one;
  unsigned found = 0;
  int code = text_of(*gpu, "processes", "", value, sizeof value);
  while (code == OK && (one = strsep(&rest, ",")) != NULL && *one && found < *count) {
    u64 memory_mb = 0;
    memset(&out[found], 0, sizeof out[found]);
    sscanf(one, "%u:%llu", &out[found].pid, &memory_mb);
    out[found++].memory = memory_mb << 20;
  }
  *count = found;
  return code;
}
