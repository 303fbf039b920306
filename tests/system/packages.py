#!/usr/bin/env python3
"""The package files themselves: contents, lint, and what they ask of the system they go to."""

import re
import sys
import pathlib
import tempfile

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
from harness import REPO, Failed, check, finish, note, packages, run

BINARIES = ["rushkv", "rushkvctl", "rushkv-cli"]
COMMON = (
    [f"/usr/bin/{name}" for name in BINARIES]
    + [f"/usr/share/man/man1/{name}.1.gz" for name in BINARIES]
    + [f"/usr/share/bash-completion/completions/{name}" for name in BINARIES]
    + [f"/usr/share/fish/vendor_completions.d/{name}.fish" for name in BINARIES]
    + [
        "/usr/lib/systemd/system/rushkv.service",
        "/usr/lib/sysusers.d/rushkv.conf",
        "/etc/rushkv/rushkv.toml",
        "/etc/rushkv/conf.d/README",
        "/usr/share/doc/rushkv/README.md",
        "/usr/share/doc/rushkv/examples/prometheus.yml",
        "/usr/share/doc/rushkv/examples/alerts.yml",
        "/usr/share/doc/rushkv/examples/overview.json",
        "/usr/share/doc/rushkv/examples/cluster.json",
    ]
)


def version_of(text):
    return tuple(int(part) for part in text.split("."))


def glibc_needed(binary):
    """The newest glibc symbol version that a binary links to."""
    symbols = run(["objdump", "-T", binary]).stdout
    return max((version_of(found) for found in re.findall(r"GLIBC_([0-9.]+)", symbols)), default=(0,))


def libraries_needed(binary):
    return set(re.findall(r"NEEDED\s+(\S+)", run(["objdump", "-p", binary]).stdout))


def expect_equal(what, seen, wanted):
    if seen != wanted:
        raise Failed(f"{what}: {seen!r}, wanted {wanted!r}")


def expect_files(listed, wanted):
    missing = sorted(set(wanted) - set(listed))
    if missing:
        raise Failed(f"not in the package: {missing}")


def unit_and_examples():
    with check("systemd-analyze rates the unit at 1.2 or better"):
        unit = REPO / "systemd/rushkv.service"
        report = run(["systemd-analyze", "security", "--offline=true", "--threshold=12", unit]).stdout
        note(report.strip().splitlines()[-1].strip("→ "))
    with check("promtool accepts the scrape example"):
        run(["promtool", "check", "config", REPO / "etc/prometheus.yml"])
    with check("promtool accepts the alert rules"):
        run(["promtool", "check", "rules", REPO / "etc/alerts.yml"])


    with check("shellcheck finds nothing in the shell scripts"):
        scripts = [REPO / ".ci/run", REPO / "packaging/stage", *sorted((REPO / "examples").glob("*.sh"))]
        scripts += sorted((REPO / "packaging/deb").glob("p*"))
        run(["shellcheck", *scripts])
        run(["shellcheck", "--shell=sh", *sorted((REPO / "packaging/rpm").glob("*.sh"))])


def deb(scratch):
    with check("there is one .deb", needed=True):
        package = packages("deb")
        unpacked = scratch / "deb"
        run(["dpkg-deb", "-R", package, unpacked])
        note(f"{package.name}, {package.stat().st_size / 1e6:.1f} MB")
    with check("the .deb has every file, owned by root, with the right modes"):
        lines = run(["dpkg-deb", "-c", package]).stdout.splitlines()
        files = {line.split()[5].lstrip("."): line.split() for line in lines}
        expect_files(files, COMMON + ["/usr/share/doc/rushkv/copyright", "/usr/share/doc/rushkv/changelog.gz"])
        for name, line in files.items():
            expect_equal(f"owner of {name}", line[1], "0/0")
        for name in BINARIES:
            expect_equal(f"mode of {name}", files[f"/usr/bin/{name}"][0], "-rwxr-xr-x")
        expect_equal("mode of rushkv.toml", files["/etc/rushkv/rushkv.toml"][0], "-rw-r--r--")
    with check("the settings are conffiles"):
        seen = sorted((unpacked / "DEBIAN/conffiles").read_text().split())
        expect_equal("conffiles", seen, ["/etc/rushkv/conf.d/README", "/etc/rushkv/rushkv.toml"])
    with check("nothing enables or starts the service"):
        postinst = (unpacked / "DEBIAN/postinst").read_text()
        if re.search(r"deb-systemd-invoke\s+(start|restart)\b", postinst) or "systemctl start" in postinst:
            raise Failed(postinst)
    with check("the .deb depends on a glibc that has every symbol the binaries use"):
        needed = max(glibc_needed(unpacked / "usr/bin" / name) for name in BINARIES)
        control = (unpacked / "DEBIAN/control").read_text()
        depends = re.search(r"^Depends: (.*)$", control, re.M).group(1)
        declared = re.search(r"libc6 \(>= ([0-9.]+)", depends)
        if not declared or version_of(declared.group(1)) < needed:
            raise Failed(f"binaries use GLIBC_{'.'.join(map(str, needed))}; Depends: {depends}")
        note(f"binaries use GLIBC_{'.'.join(map(str, needed))}; Depends: {depends}")
    with check("the binaries link to the C library and gcc's runtime only"):
        allowed = {"libc.so.6", "libm.so.6", "libgcc_s.so.1", "ld-linux-x86-64.so.2", "ld-linux-aarch64.so.1"}
        for name in BINARIES:
            more = libraries_needed(unpacked / "usr/bin" / name) - allowed
            if more:
                raise Failed(f"{name} needs {more}")
    with check("lintian finds nothing beyond the explained overrides"):
        report = run(["lintian", "--allow-root", "--fail-on", "error,warning", package], ok=None, timeout=180)
        if report.returncode != 0 or report.stdout.strip():
            raise Failed(report.stdout + report.stderr)
    with check("the man pages are well-formed"):
        for name in BINARIES:
            page = unpacked / f"usr/share/man/man1/{name}.1.gz"
            report = run(["mandoc", "-T", "lint", "-W", "error", page], ok=None)
            if report.returncode > 2:
                raise Failed(f"{name}: {report.stdout}")
            text = run(["mandoc", "-T", "ascii", page]).stdout
            if len(text.splitlines()) < 20:
                raise Failed(f"{name}: {len(text.splitlines())} lines only")
    with check("the bash completions load and complete"):
        for name in BINARIES:
            script = unpacked / f"usr/share/bash-completion/completions/{name}"
            seen = run(["bash", "-c", f'source "{script}" && complete -p {name}']).stdout
            if name not in seen:
                raise Failed(seen)


def rpm(scratch):
    with check("there is one .rpm", needed=True):
        package = packages("rpm")
        note(f"{package.name}, {package.stat().st_size / 1e6:.1f} MB")
    with check("the .rpm has every file"):
        listed = run(["rpm", "-qpl", package]).stdout.split()
        expect_files(listed, COMMON + ["/usr/share/licenses/rushkv/LICENSE", "/usr/share/doc/rushkv/CHANGELOG.md"])
    with check("the settings are noreplace config files"):
        flags = run(["rpm", "-qp", "--qf", "[%{FILENAMES} %{FILEFLAGS:fflags}\n]", package]).stdout
        config = sorted(line.split()[0] for line in flags.splitlines() if "cn" in (line.split() + [""])[1])
        expect_equal("config files", config, ["/etc/rushkv/conf.d/README", "/etc/rushkv/rushkv.toml"])
    with check("the .rpm requires exactly the glibc symbols that the binaries use, systemd and a shell"):
        unpacked = scratch / "rpm"
        unpacked.mkdir()
        run(["sh", "-c", 'rpm2cpio "$0" | cpio -id --quiet', package], cwd=unpacked)
        requires = set(run(["rpm", "-qp", "--requires", package]).stdout.splitlines())
        needed = max(glibc_needed(unpacked / "usr/bin" / name) for name in BINARIES)
        declared = max(version_of(found) for found in re.findall(r"libc\.so\.6\(GLIBC_([0-9.]+)\)", "\n".join(requires)))
        expect_equal("newest glibc symbol required", declared, needed)
        for name in BINARIES:
            for library in libraries_needed(unpacked / "usr/bin" / name):
                if not any(line.startswith(library) or library.startswith("ld-linux") for line in requires):
                    raise Failed(f"{name} needs {library}, the package does not require it: {sorted(requires)}")
        for word in ("systemd", "/bin/sh"):
            if word not in requires:
                raise Failed(f"no requirement on {word}: {sorted(requires)}")
    with check("rpmlint finds nothing beyond the explained filters"):
        report = run(["rpmlint", "-c", REPO / "packaging/rpm/rpmlint.toml", package], ok=None, timeout=180).stdout
        if not re.search(r"\b0 errors, 0 warnings\b", report):
            raise Failed(report)


def main():
    with tempfile.TemporaryDirectory(prefix="rushkv-packages-") as scratch:
        unit_and_examples()
        deb(pathlib.Path(scratch))
        rpm(pathlib.Path(scratch))


finish(main)
