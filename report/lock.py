"""The locks: which versions of which packages make up each environment, with their hashes.

    python -m report.lock              # or: make lock; what is locked stays, if it still fits
    python -m report.lock --upgrade    # or: make lock UPGRADE=1; the newest versions that fit

settings.ini says what is needed. uv looks for versions that go together on every Python from
`min_python` to `max_python`, on Linux and on macOS, and `locks/<environment>.txt` holds them: a
requirements file that pip reads, too. The smaller environment is a part of the larger one."""
import argparse, json, shutil, subprocess, sys, tempfile
from pathlib import Path
from .common import ROOT, UserError, main, settings, write_atomic
from .environment import ENVIRONMENTS, digest_of_settings, extras, find_uv, lock_file

PLATFORMS = {('linux', 'x86_64'), ('linux', 'aarch64'), ('darwin', 'arm64')}
HEADER = '''# Written by `make lock` from settings.ini: every package that `make {name}` needs, with its hashes,
# for Python {min_python} to {max_python} on Linux (x86_64, aarch64) and macOS (arm64).
# settings: {digest}
'''


def conditions(cfg):
    "The markers of the platforms, for the Pythons of settings.ini"
    python = f"python_version <= '{cfg['max_python']}'"
    return [f"{python} and sys_platform == '{system}' and platform_machine == '{machine}'"
            for system, machine in sorted(PLATFORMS)]


def project(cfg):
    "settings.ini as the pyproject.toml that uv reads"
    def texts(items): return json.dumps(list(items))
    lines = ['[project]', f'name = "{cfg["lib_name"]}"', f'version = "{cfg["version"]}"',
             f'requires-python = ">={cfg["min_python"]}"',
             f'dependencies = {texts(cfg["requirements"].split())}',
             '[project.optional-dependencies]',
             *(f'{name} = {texts(needs)}' for name, needs in extras(cfg).items()),
             '[tool.uv]', f'environments = {texts(conditions(cfg))}']
    return '\n'.join(lines) + '\n'


def shorter(text, cfg):
    "The lock without the conditions that hold on every platform it is for"
    major, minor = map(int, cfg['max_python'].split('.'))
    python = f"python_full_version < '{major}.{minor + 1}'"
    alone = [f"(platform_machine == '{machine}' and sys_platform == '{system}')"
             for system, machine in sorted(PLATFORMS)]
    everywhere, on_linux = (f'({" or ".join(platforms)})' for platforms in (alone, alone[1:]))
    text = text.replace(on_linux, "sys_platform == 'linux'")
    for condition in (f'{python} and {everywhere}', everywhere, python):
        text = text.replace(f' ; {condition} \\', ' \\').replace(f' ; {condition} and ', ' ; ')
        text = text.replace(f' and {condition}', '')
    return text


def compiled(name, cfg, folder, *options):
    "What uv finds for an environment"
    command = [find_uv(Path(sys.prefix)), 'pip', 'compile', 'pyproject.toml', '--extra', name,
               '--universal', '--python-version', cfg['min_python'], '--generate-hashes',
               '--no-header', '--quiet', '-o', f'{name}.txt', *options]
    if not command[0]: raise UserError('uv is not installed here')
    p = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if p.returncode: raise UserError(' '.join(p.stderr.split()))
    return (folder/f'{name}.txt').read_text()


def write_locks(root, upgrade=False):
    "The largest environment first; the others take its versions"
    cfg, options = settings(root), ['--upgrade'] if upgrade else []
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        (folder/'pyproject.toml').write_text(project(cfg))
        for name in reversed(ENVIRONMENTS):
            if lock_file(name, root).exists(): shutil.copy(lock_file(name, root), folder)
            text = shorter(compiled(name, cfg, folder, *options), cfg)
            options = ['-c', f'{name}.txt']
            head = HEADER.format(name=name, digest=digest_of_settings(cfg), **cfg)
            write_atomic(lock_file(name, root), head + text)
            print(f'{lock_file(name, root).relative_to(root)} written')


def run():
    summary = __doc__.split('\n')[0]
    parser = argparse.ArgumentParser(prog='python -m report.lock', description=summary)
    parser.add_argument('--upgrade', action='store_true', help='take the newest versions that fit')
    write_locks(ROOT, parser.parse_args().upgrade)


if __name__ == '__main__': main(run)
