"""Which system calls and families of sockets are tried, for the attacks and for the tests that judge them."""

import signal

NEW = {
    "user": 0x10000000, "mount": 0x00020000, "pid": 0x20000000, "net": 0x40000000,
    "ipc": 0x08000000, "uts": 0x04000000, "cgroup": 0x02000000, "time": 0x00000080,
}  # fmt: skip
NOWHERE = 1  # an address that is never mapped
FAMILIES = {
    "packet": 17, "key": 15, "rds": 21, "can": 29, "tipc": 30, "bluetooth": 31, "alg": 38, "nfc": 39, "vsock": 40,
    "qipcrtr": 42, "smc": 43, "xdp": 44,
}  # fmt: skip

CALLS = {
    # name: number and arguments on x86_64
    "unshare_user": (272, NEW["user"]),
    "clone_user": (56, NEW["user"] | signal.SIGCHLD, 0, 0, 0, 0),
    "setns": (308, -1, 0),
    "mount": (165, NOWHERE, NOWHERE, NOWHERE, 0, NOWHERE),
    "umount": (166, NOWHERE, 0xFFFF),
    "open_tree": (428, -100, b"/\0", 0),
    "mount_setattr": (442, -1, b"\0", 0, 0, 0),
    "chroot": (161, NOWHERE),
    "name_to_handle": (303, -100, NOWHERE, NOWHERE, NOWHERE, 0),
    "keyctl": (250, 0, -3, 0),
    "add_key": (248, b"user\0", b"hansa\0", b"x", 1, -2),
    "request_key": (249, b"user\0", b"hansa\0", 0, -2),
    "perf_event": (298, NOWHERE, 0, -1, -1, 0),
    "userfaultfd": (323, 1),
    "io_uring_setup": (425, 8, NOWHERE),
    "io_uring_enter": (426, -1, 0, 0, 0, 0, 0),
    "io_uring_register": (427, -1, 0, 0, 0),
    "trace_me": (101, 0, 0, 0, 0),
    "personality": (135, 0x0040000),
    "modify_ldt": (154, 0, 0, 0),
    "iopl": (172, 0),
    "ioperm": (173, 0, 1, 0),
    "adjust_clock": (305, 0, NOWHERE),
    "adjust_time": (159, NOWHERE),
    "set_clock": (227, -1, NOWHERE),
    "fanotify": (300, 0x200, 0),
    "quota": (179, 0x7FFFFFFF, NOWHERE, 0, 0),
    "settimeofday": (164, NOWHERE, 0),
    # Rights refuse these as well as the filter does.
    "bpf": (321, 5, NOWHERE, 8),
    "pivot_root": (155, NOWHERE, NOWHERE),
    "fsopen": (430, b"tmpfs\0", 0),
    "fsmount": (432, -1, 0, 0),
    "move_mount": (429, -1, NOWHERE, -1, NOWHERE, 0),
    "open_by_handle": (304, -1, NOWHERE, 0),
    "init_module": (175, NOWHERE, 0, NOWHERE),
    "finit_module": (313, -1, NOWHERE, 0),
    "delete_module": (176, NOWHERE, 0),
    "kexec": (246, 0, 0, 0, 0),
    "reboot": (169, 0, 0, 0, 0),
    "sethostname": (170, NOWHERE, 4),
    "kernel_log": (103, 10, 0, 0),
    "swapon": (167, NOWHERE, 0),
    "acct": (163, NOWHERE),
    "vhangup": (153,),
    # A number of the x32 table, which would go around a list of the usual numbers.
    "x32_mount": (0x40000000 | 165, NOWHERE, NOWHERE, NOWHERE, 0, NOWHERE),
    "x32_ptrace": (0x40000000 | 521, 0, 0, 0, 0),
}
