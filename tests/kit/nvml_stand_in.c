/* A stand-in for NVIDIA's management library, libnvidia-ml.so.1: it plays the machine that a file describes.
 *
 * The file ($NVML_SCRIPT) is read again at every call, so a test may change the machine while a program looks at it.
 * Each line is a name and a value. `gpu.temperature 40` holds for every GPU, `gpu1.temperature 90` for one of them and
 * `slice1.0.busy 3` for a slice of it. A value `!15` makes the call answer with that error. `gpu1.all !15` makes every
 * call about a GPU do so. `hang 1` lets every call wait for ever, `crash 1` ends the process. What is set, not read, is
 * appended to $NVML_LOG.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define MOST_GPUS 16
#define MOST_SLICES 8
#define EXPORT __attribute__((visibility("default")))
typedef unsigned long long u64;
typedef struct { int gpu, slice; } Handle;

enum { OK = 0, BAD_ARGUMENT = 2, NOT_SUPPORTED = 3, NO_PERMISSION = 4, NOT_FOUND = 6, TOO_SMALL = 7, TIMEOUT = 10 };

static Handle handles[MOST_GPUS][MOST_SLICES + 1];
static char last_event[MOST_GPUS][64];
static unsigned set_limit[MOST_GPUS];
static int events_on[MOST_GPUS];

/* The value of a name, or nothing. */
static int look_up(const char *name, char *out, size_t size) {
  const char *path = getenv("NVML_SCRIPT");
  FILE *file = path ? fopen(path, "r") : NULL;
  char line[1024];
  int found = 0;
  size_t length = strlen(name);
  if (!file) return 0;
  while (fgets(line, sizeof line, file)) {
    line[strcspn(line, "\n")] = 0;
    if (!strncmp(line, name, length) && line[length] == ' ') {
      snprintf(out, size, "%s", line + length + 1);
      found = 1;
    }
  }
  fclose(file);
  return found;
}

static void weather(void) {
  char value[64];
  if (look_up("hang", value, sizeof value)) for (;;) pause();
  if (look_up("crash", value, sizeof value)) abort();
}

/* A value of the whole machine, of a GPU or of a slice; `otherwise` where the script is silent, NULL for "not supported". */
static int text_of(Handle *handle, const char *field, const char *otherwise, char *out, size_t size) {
  char name[128];
  int found = 0;
  weather();
  if (handle) {
    char gone[64];
    snprintf(name, sizeof name, "gpu%d.all", handle->gpu);
    if (look_up(name, gone, sizeof gone) && gone[0] == '!') return atoi(gone + 1);
    if (handle->slice >= 0) {
      snprintf(name, sizeof name, "slice%d.%d.%s", handle->gpu, handle->slice, field);
      found = look_up(name, out, size);
      if (!found) { snprintf(name, sizeof name, "slice.%s", field); found = look_up(name, out, size); }
    } else {
      snprintf(name, sizeof name, "gpu%d.%s", handle->gpu, field);
      found = look_up(name, out, size);
      if (!found) { snprintf(name, sizeof name, "gpu.%s", field); found = look_up(name, out, size); }
    }
  } else {
    found = look_up(field, out, size);
  }
  if (!found) {
    if (!otherwise) return NOT_SUPPORTED;
    snprintf(out, size, "%s", otherwise);
  }
  return out[0] == '!' ? atoi(out + 1) : OK;
}

static int number_of(Handle *handle, const char *field, const char *otherwise, u64 *out) {
  char value[256];
  int code = text_of(handle, field, otherwise, value, sizeof value);
  if (code == OK) *out = strtoull(value, NULL, 0);
  return code;
}

static int small_of(Handle *handle, const char *field, const char *otherwise, unsigned *out) {
  u64 value = 0;
  int code = number_of(handle, field, otherwise, &value);
  if (code == OK) *out = (unsigned)value;
  return code;
}

static void note(const char *what, int gpu, unsigned value) {
  const char *path = getenv("NVML_LOG");
  FILE *file = path ? fopen(path, "a") : NULL;
  if (!file) return;
  fprintf(file, "%s %d %u\n", what, gpu, value);
  fclose(file);
}

/* ---- the library ---- */

EXPORT int nvmlInitWithFlags(unsigned flags) {
  u64 unused, waking_ms = 0;
  (void)flags;
  number_of(NULL, "waking_ms", "0", &waking_ms);
  usleep((useconds_t)(waking_ms * 1000));
  return number_of(NULL, "init", "0", &unused);
}
EXPORT int nvmlShutdown(void) { note("shutdown", 0, 0); return OK; }
EXPORT const char *nvmlErrorString(int code) {
  switch (code) {
    case 3: return "Not Supported";
    case 4: return "Insufficient Permissions";
    case 9: return "Driver Not Loaded";
    case 15: return "GPU is lost";
    default: return "An Error";
  }
}
EXPORT int nvmlSystemGetDriverVersion(char *out, unsigned size) { return text_of(NULL, "driver", "580.00", out, size); }
EXPORT int nvmlSystemGetCudaDriverVersion(int *out) { return small_of(NULL, "cuda", "13000", (unsigned *)out); }
EXPORT int nvmlDeviceGetCount_v2(unsigned *count) { return small_of(NULL, "gpus", "2", count); }
EXPORT int nvmlDeviceGetHandleByIndex_v2(unsigned index, Handle **device) {
  char value[64];
  if (index >= MOST_GPUS) return BAD_ARGUMENT;
  handles[index][0].gpu = (int)index;
  handles[index][0].slice = -1;
  *device = &handles[index][0];
  return text_of(*device, "handle", "ok", value, sizeof value);
}
static void own_uuid(Handle *device, char *out, size_t size) {
  if (device->slice < 0) snprintf(out, size, "GPU-stand-in-%d", device->gpu);
  else snprintf(out, size, "MIG-stand-in-%d-%d", device->gpu, device->slice);
}
EXPORT int nvmlDeviceGetUUID(Handle *device, char *out, unsigned size) {
  char own[64];
  own_uuid(device, own, sizeof own);
  return text_of(device, "uuid", own, out, size);
}
EXPORT int nvmlDeviceGetHandleByUUID(const char *uuid, Handle **device) {
  for (int gpu = 0; gpu < MOST_GPUS; gpu++) {
    char found[96];
    handles[gpu][0].gpu = gpu;
    handles[gpu][0].slice = -1;
    if (nvmlDeviceGetUUID(&handles[gpu][0], found, sizeof found) == OK && !strcmp(found, uuid)) {
      *device = &handles[gpu][0];
      return OK;
    }
  }
  return NOT_FOUND;
}
EXPORT int nvmlDeviceGetName(Handle *device, char *out, unsigned size) {
  return text_of(device, "name", device->slice < 0 ? "NVIDIA Stand-in" : NULL, out, size);
}
EXPORT int nvmlDeviceGetMinorNumber(Handle *device, unsigned *out) {
  char own[16];
  snprintf(own, sizeof own, "%d", device->gpu + 7);
  return small_of(device, "minor", own, out);
}
struct memory { u64 total, free, used; };
EXPORT int nvmlDeviceGetMemoryInfo(Handle *device, struct memory *out) {
  u64 total_mb = 0, used_mb = 0;
  int code = number_of(device, "memory_mb", "81920", &total_mb);
  if (code == OK) code = number_of(device, "used_mb", "0", &used_mb);
  out->total = total_mb << 20; out->used = used_mb << 20; out->free = out->total - out->used;
  return code;
}
EXPORT int nvmlDeviceGetCudaComputeCapability(Handle *device, int *major, int *minor) {
  char value[16];
  int code = text_of(device, "capability", "9.0", value, sizeof value);
  if (code == OK && sscanf(value, "%d.%d", major, minor) != 2) return BAD_ARGUMENT;
  return code;
}
struct pci { char legacy[16]; unsigned domain, bus, device, id, subsystem; char bus_id[32]; };
EXPORT int nvmlDeviceGetPciInfo_v3(Handle *device, struct pci *out) {
  char own[32];
  memset(out, 0, sizeof *out);
  snprintf(own, sizeof own, "00000000:%02X:00.0", device->gpu + 1);
  return text_of(device, "bus", own, out->bus_id, sizeof out->bus_id);
}
EXPORT int nvmlDeviceGetMaxPcieLinkGeneration(Handle *d, unsigned *out) { return small_of(d, "pcie_generation_most", "5", out); }
EXPORT int nvmlDeviceGetMaxPcieLinkWidth(Handle *d, unsigned *out) { return small_of(d, "pcie_width_most", "16", out); }
EXPORT int nvmlDeviceGetCurrPcieLinkGeneration(Handle *d, unsigned *out) { return small_of(d, "pcie_generation", "5", out); }
EXPORT int nvmlDeviceGetCurrPcieLinkWidth(Handle *d, unsigned *out) { return small_of(d, "pcie_width", "16", out); }
EXPORT int nvmlDeviceGetPcieReplayCounter(Handle *d, unsigned *out) { return small_of(d, "pcie_replays", NULL, out); }
EXPORT int nvmlDeviceGetNumaNodeId(Handle *d, int *out) { return small_of(d, "numa", NULL, (unsigned *)out); }

/* gpu0.nvlink0 1 : link 0 of GPU 0 leads to GPU 1; to "switch" where it leads to none. */
EXPORT int nvmlDeviceGetNvLinkState(Handle *device, unsigned link, unsigned *active) {
  char name[32], value[32];
  snprintf(name, sizeof name, "nvlink%u", link);
  int code = text_of(device, name, NULL, value, sizeof value);
  *active = code == OK;
  return code;
}
EXPORT int nvmlDeviceGetNvLinkRemotePciInfo_v2(Handle *device, unsigned link, struct pci *out) {
  char name[32], value[32];
  snprintf(name, sizeof name, "nvlink%u", link);
  int code = text_of(device, name, NULL, value, sizeof value);
  memset(out, 0, sizeof *out);
  if (code == OK)
    snprintf(out->bus_id, sizeof out->bus_id, "00000000:%02X:00.0", strcmp(value, "switch") ? atoi(value) + 1 : 0xF0);
  return code;
}
EXPORT int nvmlDeviceGetTopologyCommonAncestor(Handle *one, Handle *other, unsigned *level) {
  char name[32];
  snprintf(name, sizeof name, "distance%d", other->gpu);
  return small_of(one, name, NULL, level);
}

/* ---- slices ---- */

EXPORT int nvmlDeviceGetMigMode(Handle *device, unsigned *now, unsigned *later) {
  int code = small_of(device, "mig", NULL, now);
  *later = *now;
  return code;
}
EXPORT int nvmlDeviceGetMaxMigDeviceCount(Handle *device, unsigned *out) { (void)device; *out = MOST_SLICES; return OK; }
EXPORT int nvmlDeviceGetMigDeviceHandleByIndex(Handle *device, unsigned index, Handle **out) {
  u64 slices = 0;
  int code = number_of(device, "slices", "0", &slices);
  if (code != OK || index >= slices || index >= MOST_SLICES) return code ? code : NOT_FOUND;
  handles[device->gpu][index + 1].gpu = device->gpu;
  handles[device->gpu][index + 1].slice = (int)index;
  *out = &handles[device->gpu][index + 1];
  return OK;
}
EXPORT int nvmlDeviceGetGpuInstanceId(Handle *device, unsigned *out) {
  char own[16];
  snprintf(own, sizeof own, "%d", device->slice + 7);
  return small_of(device, "instance", own, out);
}
EXPORT int nvmlDeviceGetComputeInstanceId(Handle *device, unsigned *out) { return small_of(device, "compute_instance", "0", out); }
struct attributes { unsigned processors, copy, decoders, encoders, jpeg, ofa, gpu_slices, compute_slices; u64 memory_mb; };
EXPORT int nvmlDeviceGetAttributes_v2(Handle *device, struct attributes *out) {
  memset(out, 0, sizeof *out);
  int code = small_of(device, "gpu_slices", "1", &out->gpu_slices);
  if (code == OK) code = small_of(device, "compute_slices", "1", &out->compute_slices);
  if (code == OK) code = number_of(device, "memory_mb", "9728", &out->memory_mb);
  return code;
}

/* ---- how it does ---- */

struct busy { unsigned gpu, memory; };
EXPORT int nvmlDeviceGetUtilizationRates(Handle *device, struct busy *out) {
  int code = small_of(device, "busy", device->slice < 0 ? "0" : NULL, &out->gpu);
  if (code == OK) code = small_of(device, "memory_busy", "0", &out->memory);
  return code;
}
EXPORT int nvmlDeviceGetComputeMode(Handle *d, unsigned *out) { return small_of(d, "compute_mode", NULL, out); }
struct fabric { unsigned char cluster[16]; int status; unsigned clique, state; };
EXPORT int nvmlDeviceGetGpuFabricInfo(Handle *d, struct fabric *out) { return small_of(d, "fabric", NULL, &out->state); }
EXPORT int nvmlDeviceGetPerformanceState(Handle *d, unsigned *out) { return small_of(d, "state", "0", out); }
EXPORT int nvmlDeviceGetTemperature(Handle *d, unsigned sensor, unsigned *out) { (void)sensor; return small_of(d, "temperature", "40", out); }
EXPORT int nvmlDeviceGetPowerUsage(Handle *d, unsigned *out) { return small_of(d, "power_mw", "70000", out); }
EXPORT int nvmlDeviceGetTotalEnergyConsumption(Handle *d, u64 *out) { return number_of(d, "energy_mj", NULL, out); }
EXPORT int nvmlDeviceGetClockInfo(Handle *d, unsigned kind, unsigned *out) { return small_of(d, kind == 2 ? "memory_clock" : "clock", "1500", out); }
EXPORT int nvmlDeviceGetCurrentClocksEventReasons(Handle *d, u64 *out) { return number_of(d, "throttled", "0", out); }
EXPORT int nvmlDeviceGetEncoderUtilization(Handle *d, unsigned *out, unsigned *period) { *period = 0; return small_of(d, "encoder", NULL, out); }
EXPORT int nvmlDeviceGetDecoderUtilization(Handle *d, unsigned *out, unsigned *period) { *period = 0; return small_of(d, "decoder", NULL, out); }
EXPORT int nvmlDeviceGetTotalEccErrors(Handle *device, unsigned kind, unsigned counter, u64 *out) {
  static const char *names[2][2] = {{"ecc_single", "ecc_single_ever"}, {"ecc_double", "ecc_double_ever"}};
  return number_of(device, names[kind & 1][counter & 1], NULL, out);
}
EXPORT int nvmlDeviceGetRemappedRows(Handle *device, unsigned *corrected, unsigned *uncorrected, unsigned *pending, unsigned *failed) {
  char value[64];
  int code = text_of(device, "remapped", NULL, value, sizeof value);
  if (code == OK && sscanf(value, "%u,%u,%u,%u", corrected, uncorrected, pending, failed) != 4) return BAD_ARGUMENT;
  return code;
}
EXPORT int nvmlDeviceGetRetiredPagesPendingStatus(Handle *d, unsigned *out) { return small_of(d, "retired_pending", NULL, out); }
struct field { unsigned id, scope; long long at, latency; unsigned kind; int code; u64 value; };
EXPORT int nvmlDeviceGetFieldValues(Handle *device, int count, struct field *fields) {
  for (int i = 0; i < count; i++) {
    char name[32];
    snprintf(name, sizeof name, "field%u", fields[i].id);
    fields[i].value = 0;
    fields[i].code = number_of(device, name, NULL, &fields[i].value);
  }
  return OK;
}

/* gpu0.compute 123:512,124:64 : process 123 has 512 MB there. */
struct process { unsigned pid; u64 memory; unsigned instance, compute_instance; };
static int processes(Handle *device, const char *kind, unsigned *count, struct process *out) {
  char value[1024], *rest = value, *one;
  unsigned found = 0;
  int code = text_of(device, kind, "", value, sizeof value);
  if (code != OK) return code;
  while ((one = strsep(&rest, ",")) != NULL && *one) {
    unsigned pid = 0;
    u64 memory_mb = 0;
    sscanf(one, "%u:%llu", &pid, &memory_mb);
    if (out && found < *count) out[found] = (struct process){pid, memory_mb << 20, ~0u, ~0u};
    found++;
  }
  if (found > *count) { *count = found; return TOO_SMALL; }
  *count = found;
  return OK;
}
EXPORT int nvmlDeviceGetComputeRunningProcesses_v3(Handle *d, unsigned *count, struct process *out) { return processes(d, "compute", count, out); }
EXPORT int nvmlDeviceGetGraphicsRunningProcesses_v3(Handle *d, unsigned *count, struct process *out) { return processes(d, "graphics", count, out); }

/* ---- power limits ---- */

EXPORT int nvmlDeviceGetPowerManagementLimit(Handle *device, unsigned *out) {
  if (set_limit[device->gpu]) { *out = set_limit[device->gpu]; return OK; }
  return small_of(device, "power_limit_mw", "700000", out);
}
EXPORT int nvmlDeviceGetPowerManagementDefaultLimit(Handle *d, unsigned *out) { return small_of(d, "power_default_mw", "700000", out); }
EXPORT int nvmlDeviceGetPowerManagementLimitConstraints(Handle *device, unsigned *least, unsigned *most) {
  int code = small_of(device, "power_least_mw", "200000", least);
  return code == OK ? small_of(device, "power_most_mw", "700000", most) : code;
}
EXPORT int nvmlDeviceSetPowerManagementLimit(Handle *device, unsigned limit) {
  u64 allowed = 0, least = 0, most = 0;
  number_of(NULL, "may_set", "1", &allowed);
  number_of(device, "power_least_mw", "200000", &least);
  number_of(device, "power_most_mw", "700000", &most);
  if (!allowed) return NO_PERMISSION;
  if (limit < least || limit > most) return BAD_ARGUMENT;
  set_limit[device->gpu] = limit;
  note("power", device->gpu, limit);
  return OK;
}

/* ---- events: gpu0.xid 1:79 tells of Xid 79 once; another first number tells of another one; 2:79:7 of instance 7 ---- */

EXPORT int nvmlEventSetCreate(void **out) {
  u64 yes = 0;
  int code = number_of(NULL, "events", "1", &yes);
  *out = last_event;
  return code;
}
EXPORT int nvmlEventSetFree(void *set) { (void)set; memset(events_on, 0, sizeof events_on); return OK; }
EXPORT int nvmlDeviceGetSupportedEventTypes(Handle *d, u64 *out) { return number_of(d, "event_types", "0xA", out); }
EXPORT int nvmlDeviceRegisterEvents(Handle *device, u64 kinds, void *set) {
  (void)kinds; (void)set;
  events_on[device->gpu] = 1;
  last_event[device->gpu][0] = 0;
  text_of(device, "xid", "", last_event[device->gpu], sizeof last_event[0]);
  return OK;
}
struct event { Handle *device; u64 kind, data; unsigned instance, compute_instance; };
EXPORT int nvmlEventSetWait_v2(void *set, struct event *out, unsigned timeout_ms) {
  (void)set; (void)timeout_ms;
  weather();
  for (int gpu = 0; gpu < MOST_GPUS; gpu++) {
    char value[64], name[32];
    unsigned number = 0, xid = 0, instance = ~0u;
    snprintf(name, sizeof name, "gpu%d.xid", gpu);
    if (!events_on[gpu] || !look_up(name, value, sizeof value) || !strcmp(value, last_event[gpu])) continue;
    snprintf(last_event[gpu], sizeof last_event[0], "%s", value);
    sscanf(value, "%u:%u:%u", &number, &xid, &instance);
    *out = (struct event){&handles[gpu][0], xid == 48 ? 0x2 : 0x8, xid, instance, ~0u};
    return OK;
  }
  return TIMEOUT;
}
