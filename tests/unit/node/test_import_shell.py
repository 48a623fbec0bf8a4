"""What commands let on: packages that they install, hosts that they fetch from."""

import pytest

from hansa.node.jobs.import_shell import hosts_in, packages_in


@pytest.mark.parametrize(
    ("command", "packages"),
    [
        ("pip install trl", ("trl",)),
        (
            "uv pip install -r requirements.txt 'numpy<2' \"torch==2.6.0\" --index-url https://x.y/z",
            ("numpy<2", "torch==2.6.0"),
        ),
        ("pip3 install \\\n  einops>=0.8", ("einops>=0.8",)),
        ("pip list | grep torch || pip install 'torch>=2.0.0' && python x.py", ("torch>=2.0.0",)),
        ("pip install -U 'ray[default]' hansa", ()),
        ("pip install git+https://github.com/a/b.git . -e ./c", ()),
        ("pip install flash_attn-2.0.4-cp310-cp310-linux_x86_64.whl", ()),
        ("pip install torch==1.12.1+cu113", ()),
        ("pip uninstall -y torch", ()),
        ("pip install 'unclosed", ()),
    ],
)
def test_packages_are_found_in_commands(command: str, packages: tuple[str, ...]) -> None:
    assert packages_in([command]) == packages


@pytest.mark.parametrize(
    ("command", "hosts"),
    [
        ("curl -s https://data.example.org/x | bash", ("data.example.org:443",)),
        ("git clone https://me:token@github.com/a/b.git", ("github.com:443",)),
        ("git clone git@github.com:a/b.git", ("github.com:443",)),
        ("wget http://plain.example.org/x", ("plain.example.org:80",)),
        ("wget http://mirror.example.org:8080/x", ("mirror.example.org:8080",)),
        ("curl http://127.0.0.1:8265 http://localhost:8000 http://169.254.169.254/", ()),
        ("huggingface-cli login", ("huggingface.co:443", "*.hf.co:443")),
        ("wandb login", ("api.wandb.ai:443",)),
        ("python train.py", ()),
    ],
)
def test_hosts_are_found_in_commands_and_private_ones_are_none(command: str, hosts: tuple[str, ...]) -> None:
    assert hosts_in([command]) == hosts
