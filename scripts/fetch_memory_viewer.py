"""Downloads MemoryViz.js, the script of PyTorch's memory viewer, from Debian's source package of PyTorch.

    python scripts/fetch_memory_viewer.py FILE

PyTorch's wheels don't contain it: `torch.cuda._memory_viz` and https://docs.pytorch.org/memory_viz load it from a
network. `tests/test_memory_viewer.py` runs it on our snapshots if FILE is `.ci/MemoryViz.js` or the environment
variable `MEMORY_VIEWER`. Needs Debian's `apt-get` and its archive keyring. The system's own package lists are not
changed.
"""

from __future__ import annotations

import argparse
import subprocess
import tarfile
import tempfile
from pathlib import Path

SUITE = "trixie"
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
SOURCES = f"deb-src [signed-by={KEYRING}] http://deb.debian.org/debian {SUITE} main\n"
VIEWER = "torch/utils/viz/MemoryViz.js"


def download_source(folder: Path) -> Path:
    """Downloads the archive of PyTorch's source (about 30 MB), with separate package lists."""
    (folder / "lists" / "partial").mkdir(parents=True)
    (folder / "sources.list").write_text(SOURCES)
    options = {
        "Dir::Etc::sourcelist": folder / "sources.list",
        "Dir::Etc::sourceparts": "/dev/null",
        "Dir::State::lists": folder / "lists",
        "Dir::Cache::pkgcache": "",
        "Dir::Cache::srcpkgcache": "",
        "APT::Sandbox::User": "root",  # only the caller can read the temporary folder
    }
    apt = ["apt-get", "-qq", *(f"-o{key}={value}" for key, value in options.items())]
    subprocess.run([*apt, "update"], check=True)
    subprocess.run([*apt, "source", "--download-only", "pytorch"], cwd=folder, check=True)
    (archive,) = folder.glob("pytorch_*.orig.tar.*")
    return archive


def read_viewer(archive: Path) -> bytes:
    """The script's content.

    Raises:
        FileNotFoundError: the archive has no such file.
    """
    with tarfile.open(archive) as source:
        for member in source:
            if member.name.endswith(VIEWER):
                file = source.extractfile(member)
                assert file is not None
                return file.read()
    raise FileNotFoundError(f"{archive.name} has no {VIEWER}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="where to write the script")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        content = read_viewer(download_source(Path(folder)))
    arguments.file.write_bytes(content)
    print(f"{len(content):,} bytes: {arguments.file}")


if __name__ == "__main__":
    main()
