#!/bin/sh
# Runs below a real systemd, as root: the units, a price, a run in a real sandbox, a kill -9, a restart, and the end.
# Every fact is a line in /opt/out/log; test_units_booted.py reads it.
out=/opt/out
. $out/environment
say() { echo "$*" >> $out/log; }
check() { # NAME COMMAND...
    name=$1; shift
    if "$@" >> $out/words 2>&1; then say "ok: $name"; else say "FAILED: $name"; finish; fi
}
finish() { # what follows a failure would only fail more slowly
    journalctl --no-pager -u hansa -u hansa-launcher -u hansa-builder >> $out/words 2>&1
    say END
    exit 0
}
of_hansa() { command=$1; shift; [ "$command" = node ] && { command="node $1"; shift; }; runuser -u hansa -- hansa $command --data /var/lib/hansa "$@"; }
wait_for() { # SECONDS COMMAND...
    until_s=$(($(date +%s) + $1)); shift
    while [ "$(date +%s)" -lt "$until_s" ]; do "$@" && return 0; sleep 0.3; done
    return 1
}
is_up() { of_hansa node status --json > $out/status 2>> $out/words; }
runners() { pgrep -f hansa.worker.runner > /dev/null; }
no_runners() { ! runners; }
is_over() { of_hansa jobs --json | grep -q '"phase": *"succeeded"'; }
devices() { cat /sys/block/loop*/loop/backing_file 2>/dev/null | grep -c hansa-launcher; }
devices_are() { [ "$(devices)" = "$1" ]; }

useradd --system --home-dir /var/lib/hansa --shell /usr/sbin/nologin hansa
install -d -o hansa -g hansa -m 0700 /var/lib/hansa
of_hansa init --provider --cpu-slots 1 --listen /ip4/127.0.0.1/tcp/4555 --metrics-port 0 >> $out/words 2>&1

# As the documentation has it without units: the daemon's user starts a launcher of its own.
of_hansa doctor --json > $out/doctor 2>> $out/words
sed -i 's|^launcher = .*|launcher = "/run/hansa/launcher.sock"|' /var/lib/hansa/config.toml

# A pricing program, which the daemon itself may make no room for.
printf '#!/bin/sh\ncat > /dev/null\necho "{\\"price_per_hour\\": \\"0.42\\"}"\n' > /usr/local/bin/hansa-price
chmod 0755 /usr/local/bin/hansa-price
sed -i 's|^program = .*|program = ["/usr/local/bin/hansa-price"]|; s|^program_timeout = .*|program_timeout = "5 s"|' /var/lib/hansa/config.toml

systemctl start hansa >> $out/words 2>&1
check "both units come up" wait_for 60 is_up
of_hansa node price --json > $out/price_without_builder 2>> $out/words
of_hansa doctor --json > $out/doctor_without_builder 2>> $out/words
systemctl stop hansa hansa-launcher
sed -i 's|^builder = .*|builder = "/run/hansa-builder/socket"|' /var/lib/hansa/config.toml
install -d -o hansa -g hansa -m 0711 /var/lib/hansa/environments
systemctl start hansa-builder >> $out/words 2>&1
check "the builder comes up" wait_for 20 test -S /run/hansa-builder/socket
systemctl start hansa >> $out/words 2>&1
check "both units come up again" wait_for 60 is_up
of_hansa node price --json > $out/price 2>> $out/words
of_hansa doctor --json > $out/doctor_of_units 2>> $out/words
check "the launcher's socket is for root and its group only" [ "$(stat -c '%a %U %G' /run/hansa)" = "750 root hansa" ]
of_hansa submit /opt/job --json > $out/submitted 2>> $out/words
check "a run is there" wait_for 60 runners
check "on disks of its own, or none can be made" wait_for 5 devices_are "$DEVICES"
check "its uid is claimed where all launchers look" [ -e /run/hansa-launcher/64000 ]
check "the job succeeds" wait_for 120 is_over
check "nothing of it is left" wait_for 20 no_runners
check "nor of its disks" wait_for 20 devices_are 0
of_hansa submit /opt/job --json >> $out/words 2>&1
check "a second run is there" wait_for 60 runners
systemctl kill --signal=KILL hansa
check "kill -9 of the daemon leaves no run" wait_for 10 no_runners
check "systemd starts it again" wait_for 60 is_up
check "and its run goes on" wait_for 60 runners
systemctl kill --signal=KILL --kill-who=main hansa-launcher
check "kill -9 of the launcher's listener leaves no run" wait_for 10 no_runners
check "both are started again" wait_for 60 is_up
check "and the run goes on again" wait_for 90 runners
systemctl stop hansa hansa-launcher
check "stopping leaves no run" wait_for 10 no_runners
check "and no disk" wait_for 10 devices_are 0
finish
