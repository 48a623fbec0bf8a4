"""The system calls that job code may not make, as a filter for bubblewrap's ``--seccomp``.

Namespaces and missing capabilities stop most of what these calls could do; the filter stops what they leave open
(AF_VSOCK reaches the hypervisor, the kernel keyring is shared, io_uring goes around filters) and takes the parts of the
kernel away in which most escapes were found. Everything not named is allowed: a list of the allowed would break every
other numeric library.

The filter is assembled here as classic BPF, two instructions a call, rather than by libseccomp: a provider on a fresh
machine has no libseccomp, and refusing to lend for want of 1 kB of instructions would be silly. A test tries the calls
in a real sandbox.
"""

import errno
import os
import platform
import struct
from typing import Final

_LOAD, _EQUALS, _ANY_BIT, _AT_LEAST, _RETURN = 0x20, 0x15, 0x45, 0x35, 0x06
_ALLOW, _KILL_PROCESS, _ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
_NUMBER_AT, _ARCHITECTURE_AT, _ARGUMENTS_AT = 0, 4, 16
_X32_BIT = 0x40000000
_NAMESPACE_FLAGS = 0x7E020000
_FAMILIES = {"AF_UNIX": 1, "AF_INET": 2, "AF_INET6": 10, "AF_NETLINK": 16}
_SOL_SOCKET, _SO_LINGER = 1, 13
_FORBIDDEN_IOCTLS = {"TIOCSTI": 0x5412, "TIOCLINUX": 0x541C}

ARCHITECTURES: Final = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}

# Name: (number on x86_64, number on aarch64); None where the architecture has no such call.
DENIED: Final[dict[str, tuple[int | None, int | None]]] = {
    # the kernel keyring is shared by all of a uid's processes
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    # large parts of the kernel with a history, and no use to a training job
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "fanotify_init": (300, 262),
    # anything that changes what the file system looks like, or a namespace
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "setns": (308, 268),
    "unshare": (272, 97),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fspick": (433, 433),
    "mount_setattr": (442, 442),
    "open_tree_attr": (467, 467),
    "open_by_handle_at": (304, 265),
    "name_to_handle_at": (303, 264),
    "quotactl": (179, 60),
    "quotactl_fd": (443, 443),
    "swapon": (167, 224),
    "swapoff": (168, 225),
    # the machine itself
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "delete_module": (176, 106),
    "kexec_load": (246, 104),
    "kexec_file_load": (320, 294),
    "reboot": (169, 142),
    "acct": (163, 89),
    "syslog": (103, 116),
    "settimeofday": (164, 170),
    "clock_settime": (227, 112),
    "adjtimex": (159, 171),
    "clock_adjtime": (305, 266),
    "sethostname": (170, 161),
    "setdomainname": (171, 162),
    "vhangup": (153, 58),
    "iopl": (172, None),
    "ioperm": (173, None),
    "modify_ldt": (154, None),
    # other processes' memory
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "pidfd_getfd": (438, 438),
    "kcmp": (312, 272),
    "personality": (135, 92),
}
# Memory that no process has mapped and no file system knows: where nobody but we count memory, it would not be seen.
UNCOUNTED: Final[dict[str, tuple[int, int]]] = {
    "memfd_create": (319, 279),
    "memfd_secret": (447, 447),
    "msgget": (68, 186),
    "semget": (64, 190),
    "shmget": (29, 194),
}
_CLONE, _SOCKET, _SOCKETPAIR, _IOCTL, _CLONE3 = (56, 220), (41, 198), (53, 199), (16, 29), (435, 435)
_SETSOCKOPT = (54, 208)


def build_filter(machine: str, *, uncounted: bool = True) -> bytes:
    """The filter for this machine type (as `platform.machine` says it) in the form the kernel takes.

    Args:
        machine: its name.
        uncounted: whether calls are allowed that take memory which only a control group counts.

    Raises:
        KeyError: there is no table for such a machine, so it must not run strangers' code.
    """
    column = list(ARCHITECTURES).index(machine) if machine in ARCHITECTURES else None
    if column is None:
        raise KeyError(machine)
    deny = _ERRNO | errno.EPERM
    program = [
        _operation(_LOAD, _ARCHITECTURE_AT),
        # Calls by another architecture's numbers (32-bit programs) would go around every line below.
        _operation(_EQUALS, ARCHITECTURES[machine], 1, 0),
        _operation(_RETURN, _KILL_PROCESS),
        _operation(_LOAD, _NUMBER_AT),
    ]
    if machine == "x86_64":  # and so would the x32 numbers
        program += [_operation(_AT_LEAST, _X32_BIT, 0, 1), _operation(_RETURN, deny)]
    for numbers in (*DENIED.values(), *(() if uncounted else UNCOUNTED.values())):
        number = numbers[column]
        if number is not None:
            program += [_operation(_EQUALS, number, 0, 1), _operation(_RETURN, deny)]
    # clone3 hides its flags behind a pointer; ENOSYS makes libc fall back to clone, whose flags can be looked at.
    program += [_operation(_EQUALS, _CLONE3[column], 0, 1), _operation(_RETURN, _ERRNO | errno.ENOSYS)]
    program += _on_argument(
        _CLONE[column], 0, [_operation(_ANY_BIT, _NAMESPACE_FLAGS, 0, 1), _operation(_RETURN, deny)]
    )
    families = [_operation(_EQUALS, family, 0, 1) + _operation(_RETURN, _ALLOW) for family in _FAMILIES.values()]
    refused = _operation(_RETURN, _ERRNO | errno.EAFNOSUPPORT)
    for calls in (_SOCKET, _SOCKETPAIR):  # a pair is made by the family's own code, too, even where it then says no
        program += _on_argument(calls[column], 0, [*_halves(families), refused])
    ioctls = [_operation(_EQUALS, number, 0, 1) + _operation(_RETURN, deny) for number in _FORBIDDEN_IOCTLS.values()]
    program += _on_argument(_IOCTL[column], 1, _halves(ioctls))
    # A socket that lingers stops whoever closes it last, and a descriptor can be sent to the daemon. Programs that ask
    # for it are told yes, for few reckon with a no.
    linger = _operation(_EQUALS, _SO_LINGER, 0, 1) + _operation(_RETURN, _ERRNO)
    level = _operation(_EQUALS, _SOL_SOCKET, 0, 3) + _operation(_LOAD, _ARGUMENTS_AT + 8 * 2)
    program += _on_argument(_SETSOCKOPT[column], 1, _halves([level, linger]))
    program.append(_operation(_RETURN, _ALLOW))
    return b"".join(program)


def open_filter(*, uncounted: bool = True) -> int:
    """A file descriptor from which bubblewrap can read the filter for this machine; see `build_filter`."""
    descriptor = os.memfd_create("hansa-seccomp", os.MFD_CLOEXEC)
    os.write(descriptor, build_filter(platform.machine(), uncounted=uncounted))
    os.lseek(descriptor, 0, os.SEEK_SET)
    return descriptor


def _operation(code: int, operand: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("<HBBI", code, if_true, if_false, operand)


def _halves(pairs: list[bytes]) -> list[bytes]:
    return [pair[i : i + 8] for pair in pairs for i in (0, 8)]


def _on_argument(number: int, argument: int, checks: list[bytes]) -> list[bytes]:
    """For one call, load the low half of an argument, run the checks, and allow what they let by."""
    body = [_operation(_LOAD, _ARGUMENTS_AT + 8 * argument), *checks, _operation(_RETURN, _ALLOW)]
    return [_operation(_EQUALS, number, 0, len(body)), *body]
