"""Variables that may hold a secret are known by their names, or by what their values look like."""

import pytest

from hansa.node.jobs.import_secrets import is_ours_to_leave, is_secret


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("HF_TOKEN", "x"),
        ("WANDB_API_KEY", ""),
        ("JUPYTER_PASSWORD", "unsloth"),
        ("DB_PASS", "x"),
        ("PRIVATE_KEY", "x"),
        ("SSH_PUBKEY", "x"),
        ("DATABASE_DSN", "x"),
        ("WALLET_ADDRESS", "x"),
        ("MODEL", "hf_abcdefghijkl"),
        ("OPTIONS", "--listen 0.0.0.0 --api-key abc"),
        ("REPO", "https://me:s3cret@github.com/a/b"),
        ("X", "AKIAIOSFODNN7EXAMPLE"),
        ("X", "eyJhbGciOiJIUzI1NiJ9.payload"),
        ("X", "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"),
        ("X", "-----BEGIN OPENSSH"),
    ],
)
def test_what_may_be_a_secret_is_one(name: str, value: str) -> None:
    assert is_secret(name, value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("MODEL_ID", "deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B"),
        ("NCCL_DEBUG", "INFO"),
        ("TOTAL_EPOCHS", "200"),
        ("HF_HOME", "/workspace/.cache/huggingface"),
        ("MODEL_NAME", "nvidia/parakeet-ctc-1.1b"),
        ("POOL", "stratum+ssl://us-solo-etc.2miners.com:15050"),
        ("VLLM_DISABLE_COMPILE_CACHE", "1"),
    ],
)
def test_plain_settings_are_none(name: str, value: str) -> None:
    assert not is_secret(name, value)


def test_what_lays_out_a_machine_is_left_to_it() -> None:
    assert all(map(is_ours_to_leave, ("PATH", "LD_LIBRARY_PATH", "NVIDIA_VISIBLE_DEVICES", "CUDA_HOME")))
    assert not any(map(is_ours_to_leave, ("PATHS", "MODEL_PATH", "HF_HOME")))
