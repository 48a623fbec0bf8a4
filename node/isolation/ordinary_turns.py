"""Strangers' programs get the processor as everybody does, whatever priority the daemon was started with.

Priority is inherited. A daemon that its owner runs at a real-time priority, or a negative nice value, would hand it on
to the programs in its sandboxes, and two such loops keep the rest of a machine of two cores from its processor.
Besides, a kernel that counts real-time processes by groups (CONFIG_RT_GROUP_SCHED) lets none into a sandbox's.
"""

import os
import resource

_ABOVE_ORDINARY = (os.SCHED_FIFO, os.SCHED_RR)


def take_ordinary_turns() -> None:
    """Give up what this process, and so all that it starts from here on, has above an ordinary process."""
    if os.sched_getscheduler(0) & ~os.SCHED_RESET_ON_FORK in _ABOVE_ORDINARY:
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
    if os.getpriority(os.PRIO_PROCESS, 0) < 0:
        os.setpriority(os.PRIO_PROCESS, 0, 0)
    for limit in (resource.RLIMIT_RTPRIO, resource.RLIMIT_NICE):
        resource.setrlimit(limit, (0, 0))  # whoever may raise themselves, their jobs may not
