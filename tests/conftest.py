"""What holds for every test."""

import signal

from hypothesis import HealthCheck, settings

# A suite that a script started in the background inherits an ignored SIGINT, and so would every daemon that it starts.
signal.signal(signal.SIGINT, signal.default_int_handler)

# How long an example takes says more about what else the machine does than about the code.
settings.register_profile("house", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("house")
