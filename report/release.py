"""What a release carries: the wheel, and a trained model that can be tried at once.

    python -m report.release                 # into dist/; a model of the demo study, as `make report` left it

The model's card is checked as a user's would be. The archive is the same, byte for byte, for the same model."""
import argparse, hashlib, re, shutil, subprocess, sys, tempfile, zipfile
from pathlib import Path
from .common import ROOT, UserError, main, settings


def pack(folder, out):
    "A model's two files in an archive, in a folder of its name; a file that is no such model is an error"
    from kinetics_dance.models.config import config_path, load_model
    from kinetics_dance.core.base import StudyError
    try: load_model(folder)
    except StudyError as e: raise UserError(str(e)) from None
    with zipfile.ZipFile(out, 'w', zipfile.ZIP_DEFLATED) as z:
        for name in (config_path(folder).name, 'model.safetensors'):
            info = zipfile.ZipInfo(f'{out.stem}/{name}', (1980, 1, 1, 0, 0, 0))
            info.compress_type, info.external_attr = zipfile.ZIP_DEFLATED, 0o644 << 16
            z.writestr(info, (Path(folder)/name).read_bytes())
    return out


def check_release(packed, lib):
    "Refuse to write over checksums, or over an archive, that are not of an earlier release"
    sums = packed.with_name('SHA256SUMS')
    lines = sums.read_text(errors='replace').splitlines() if sums.exists() else []
    named = [l[66:] for l in lines if re.fullmatch(r'[0-9a-f]{64}  ' + re.escape(lib) + r'-\S+', l)]
    if len(named) < len(lines) or sums.exists() and not lines: bad = sums
    elif packed.exists() and packed.name not in named: bad = packed
    else: return
    raise UserError(f'{bad}: is not of an earlier release, and would be written over; name another folder with --out')


def release():
    ap = argparse.ArgumentParser(prog='python -m report.release', description=__doc__.split('\n')[0])
    ap.add_argument('--study', default='demo', help='whose model (default: demo)')
    ap.add_argument('--model', default='cnn_lstm', help='which model (default: cnn_lstm)')
    ap.add_argument('--runs', type=Path, default=ROOT/'runs', help='folder of all runs (default: runs)')
    ap.add_argument('--out', type=Path, default=ROOT/'dist', help='where to (default: dist)')
    a = ap.parse_args()
    found = sorted((a.runs/a.study/'models'/a.model).glob('seed*/c*.json'))
    if not found: raise UserError(f'{a.runs/a.study}: no model {a.model}; make report STUDY={a.study}')
    a.out.mkdir(parents=True, exist_ok=True)
    cfg = settings(ROOT)
    packed = a.out/f"{cfg['lib_name']}-{cfg['version']}-{a.study}-{a.model}.zip"
    check_release(packed, cfg['lib_name'])
    files = [pack(found[0].parent, packed)]
    with tempfile.TemporaryDirectory() as tree:     # a copy: what an earlier build left behind must not get into the wheel
        for f in ('settings.ini', 'setup.py', 'README.md', 'LICENSE'): shutil.copy(ROOT/f, tree)
        shutil.copytree(ROOT/cfg['lib_path'], Path(tree)/cfg['lib_path'], ignore=shutil.ignore_patterns('__pycache__'))
        p = subprocess.run([sys.executable, '-m', 'pip', 'wheel', '-q', '--no-deps', '--no-build-isolation', '--disable-pip-version-check', '-w', a.out, tree],
                           capture_output=True, text=True)
    if p.returncode: raise UserError('the wheel cannot be built: ' + p.stderr.strip().splitlines()[-1])
    files += sorted(a.out.glob(f"{cfg['lib_name']}-{cfg['version']}-*.whl"))
    sums = ''.join(f'{hashlib.sha256(f.read_bytes()).hexdigest()}  {f.name}\n' for f in files)
    (a.out/'SHA256SUMS').write_text(sums)
    print(sums, end='')
    return 0


if __name__ == '__main__': main(release)
