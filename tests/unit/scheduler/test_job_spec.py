"""A job as its developer wrote it becomes what an award buys."""

from kit.trading import JOB, spec

from hansa.proto.blob import BlobRef, blob_ref
from hansa.proto.codec import decode, encode
from hansa.scheduler.job_spec import JobSpec


def test_the_workload_is_the_spec_and_nothing_else():
    package = blob_ref(b"package")
    made = spec().workload(JOB, package, None)
    assert made.package == package
    assert made.files is None
    assert spec().workload(JOB, package, BlobRef(root=bytes(31) + b"1", size_bytes=7)).files_bytes == 7
    for name in ("name", "entry", "shards", "workers", "parameters", "output_bytes", "state_bytes", "stall_ms"):
        assert getattr(made, name) == getattr(spec(), name)
    for name in ("memory_bytes", "scratch_bytes", "wall_ms"):
        assert getattr(made, name) == getattr(spec().requirements, name)


def test_a_spec_survives_the_journal():
    assert decode(encode(spec()), JobSpec, limit_bytes=1 << 16) == spec()
