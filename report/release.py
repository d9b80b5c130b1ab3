"""What a release carries: the wheel, and a trained model that can be tried at once.

    python -m report.release                 # into dist/; a model of the demo study, as `make report` left it

The model's card is checked as a user's would be. The same commit gives the same bytes: of the archive, the wheel and the sdist (dates are those
of the commit, or SOURCE_DATE_EPOCH). Beside them: checksums, and what archives of software want to know (CITATION.cff, .zenodo.json, codemeta.json)."""
import argparse, gzip, hashlib, io, json, os, re, shutil, subprocess, sys, tarfile, tempfile, zipfile
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


SOURCES = ('settings.ini', 'setup.py', 'README.md', 'LICENSE', 'CITATION.cff')
EARLIEST = 315532800        # 1980: an archive knows no earlier date
BUILD = 'from setuptools import build_meta as b; import sys; out = sys.argv[1]; b.build_sdist(out); b.build_wheel(out)'


def commit_time(root):
    "Seconds since 1970 of SOURCE_DATE_EPOCH, else of the commit, else of 1980"
    said = os.environ.get('SOURCE_DATE_EPOCH', '')
    if not said.isdecimal():
        p = subprocess.run(['git', 'log', '-1', '--format=%ct'], cwd=root, capture_output=True, text=True)
        said = p.stdout.strip()
    return max(EARLIEST, int(said)) if said.isdecimal() else EARLIEST


def repack(path, when):
    "Write a .tar.gz once more: its files by name, with one date and no owner"
    with tarfile.open(path) as old: files = [(m, old.extractfile(m).read()) for m in sorted(old.getmembers(), key=lambda m: m.name) if m.isfile()]
    part = path.with_name(path.name + '.part')
    with part.open('wb') as f, gzip.GzipFile('', 'wb', 9, f, mtime=when) as z, tarfile.open(fileobj=z, mode='w', format=tarfile.PAX_FORMAT) as new:
        for m, data in files:
            info = tarfile.TarInfo(m.name)
            info.size, info.mtime, info.mode = len(data), when, 0o644
            new.addfile(info, io.BytesIO(data))
    os.replace(part, path)


def build(root, out):
    "The wheel and the sdist, from a copy: what an earlier build left behind must not get into them"
    cfg, when = settings(root), commit_time(root)
    with tempfile.TemporaryDirectory() as tree:
        for f in SOURCES: shutil.copyfile(root/f, Path(tree)/f)
        shutil.copytree(root/cfg['lib_path'], Path(tree)/cfg['lib_path'], ignore=shutil.ignore_patterns('__pycache__'), copy_function=shutil.copyfile)
        (Path(tree)/'MANIFEST.in').write_text('include settings.ini CITATION.cff\n')
        for p in Path(tree).rglob('*'): p.chmod(0o755 if p.is_dir() else 0o644)
        made = Path(tree)/'made'
        made.mkdir()
        p = subprocess.run([sys.executable, '-c', BUILD, str(made)], cwd=tree, capture_output=True, text=True, umask=0o022,
                           env=os.environ | dict(SOURCE_DATE_EPOCH=str(when)))
        if p.returncode: raise UserError('the wheel cannot be built: ' + p.stderr.strip().splitlines()[-1])
        for sdist in made.glob('*.tar.gz'): repack(sdist, when)
        return [Path(shutil.copy(f, out)) for f in sorted(made.iterdir())]


def describe(root):
    "{file: content} that archives of software read: of Zenodo, and CodeMeta 3.0, both from CITATION.cff"
    import yaml
    cff, cfg = yaml.safe_load((root/'CITATION.cff').read_text(encoding='utf-8')), settings(root)
    def name(a): return a.get('name') or ' '.join(filter(None, (a.get('given-names'), a.get('family-names'))))
    def zenodo_name(a): return a.get('name') or ', '.join(filter(None, (a.get('family-names'), a.get('given-names'))))
    def person(a): return {'type': 'Organization' if 'name' in a else 'Person', 'name': name(a)}
    words, about = cff.get('keywords') or [], ' '.join((cff.get('abstract') or cfg['description']).split())
    zenodo = dict(title=cff['title'], description=about, upload_type='software', access_right='open', license='Apache-2.0', version=str(cff['version']),
                  publication_date=str(cff['date-released']), creators=[dict(name=zenodo_name(a)) for a in cff['authors']], keywords=words)
    codemeta = {'@context': 'https://w3id.org/codemeta/3.0', 'type': 'SoftwareSourceCode', 'name': cfg['lib_name'], 'description': about, 'version': str(cff['version']),
                'datePublished': str(cff['date-released']), 'license': 'https://spdx.org/licenses/Apache-2.0', 'programmingLanguage': 'Python', 'keywords': words,
                'author': [person(a) for a in cff['authors']], 'runtimePlatform': f"Python >= {cfg['min_python']}", 'softwareRequirements': cfg['requirements'].split()}
    if url := cff.get('repository-code'): codemeta['codeRepository'] = url
    return {'CITATION.cff': (root/'CITATION.cff').read_text(encoding='utf-8'),
            **{f: json.dumps(d, indent=1, ensure_ascii=False) + '\n' for f, d in (('.zenodo.json', zenodo), ('codemeta.json', codemeta))}}


def bill_of_materials(root, out):
    "CycloneDX: what the lock of `make report` holds, where cyclonedx-bom is installed; None elsewhere"
    tool = shutil.which('cyclonedx-py', path=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get('PATH', '')]))
    if not tool: return None
    p = subprocess.run([tool, 'requirements', str(root/'locks/report.txt'), '--output-reproducible', '--of', 'JSON', '-o', str(out)], capture_output=True, text=True)
    if p.returncode: raise UserError('the bill of materials cannot be written: ' + p.stderr.strip().splitlines()[-1])
    return out


def check_release(packed, lib):
    "Refuse to write over checksums, or over an archive, that are not of an earlier release"
    sums = packed.with_name('SHA256SUMS')
    lines = sums.read_text(errors='replace').splitlines() if sums.exists() else []
    named = [l[66:] for l in lines if re.fullmatch(r'[0-9a-f]{64}  (' + re.escape(lib) + r'-\S+|CITATION\.cff|\.zenodo\.json|codemeta\.json)', l)]
    if len(named) < len(lines) or sums.exists() and not lines: bad = sums
    elif packed.exists() and packed.name not in named: bad = packed
    else: return
    raise UserError(f'{bad}: is not of an earlier release, and would be written over; name another folder with --out')


def release():
    ap = argparse.ArgumentParser(prog='python -m report.release', description=__doc__.split('\n')[0])
    ap.add_argument('--study', default='demo', help='whose model (default: demo)')
    ap.add_argument('--model', default='cnn_lstm', help='which model (default: cnn_lstm)')
    ap.add_argument('--no-model', action='store_true', help='the packages and their descriptions only')
    ap.add_argument('--runs', type=Path, default=ROOT/'runs', help='folder of all runs (default: runs)')
    ap.add_argument('--out', type=Path, default=ROOT/'dist', help='where to (default: dist)')
    a = ap.parse_args()
    found = sorted((a.runs/a.study/'models'/a.model).glob('seed*/c*.json'))
    if not found and not a.no_model: raise UserError(f'{a.runs/a.study}: no model {a.model}; make report STUDY={a.study}')
    a.out.mkdir(parents=True, exist_ok=True)
    cfg = settings(ROOT)
    packed = a.out/f"{cfg['lib_name']}-{cfg['version']}-{a.study}-{a.model}.zip"
    check_release(packed, cfg['lib_name'])
    files = [] if a.no_model else [pack(found[0].parent, packed)]
    files += build(ROOT, a.out)
    for name, text in describe(ROOT).items():
        (a.out/name).write_text(text, encoding='utf-8')
        files.append(a.out/name)
    materials = bill_of_materials(ROOT, a.out/f"{cfg['lib_name']}-{cfg['version']}.cdx.json")
    if materials: files.append(materials)
    else: print('no bill of materials: uv pip install cyclonedx-bom', file=sys.stderr)
    sums = ''.join(f'{hashlib.sha256(f.read_bytes()).hexdigest()}  {f.name}\n' for f in files)
    (a.out/'SHA256SUMS').write_text(sums)
    print(sums, end='')
    return 0


if __name__ == '__main__': main(release)
