"What a release is made of: the same bytes for the same commit, metadata that its own validators accept, workflows that publish without a secret."
import json, os, re, tarfile, time, zipfile
import pytest, yaml
from conftest import ROOT
from report.release import build, commit_time, describe, repack


@pytest.fixture(scope='module')
def built(tmp_path_factory):
    "Two builds, under another mask and in another folder"
    made = []
    for mask in (0o022, 0o077):
        old = os.umask(mask)
        try: made.append(build(ROOT, tmp_path_factory.mktemp('dist')))
        finally: os.umask(old)
    return made


def test_two_builds_are_the_same_bytes(built):
    one, two = built
    assert [p.name for p in one] == [p.name for p in two] and {p.suffix for p in one} == {'.whl', '.gz'}
    for a, b in zip(one, two): assert a.read_bytes() == b.read_bytes(), a.name


def test_the_sdist_builds_the_same_wheel(built, tmp_path):
    "All that a build reads is in it, and no file from elsewhere"
    wheel, = (p for p in built[0] if p.suffix == '.whl')
    sdist, = (p for p in built[0] if p.suffix == '.gz')
    with tarfile.open(sdist) as t:
        assert {m.mtime for m in t} == {commit_time(ROOT)} and not [m.name for m in t if m.uid or m.issym()]
        t.extractall(tmp_path, filter='data')
    tree, = tmp_path.iterdir()
    names = {p.relative_to(tree).as_posix() for p in tree.rglob('*') if p.is_file()}
    assert {'settings.ini', 'setup.py', 'LICENSE', 'README.md'} <= names
    inside = {n for n in zipfile.ZipFile(wheel).namelist() if n.startswith('kinetics_dance/')}
    assert inside == {n for n in names if n.startswith('kinetics_dance/')}


def test_metadata_of_the_wheel(built):
    "As packaging, the reference, reads it"
    from packaging.metadata import Metadata
    wheel, = (p for p in built[0] if p.suffix == '.whl')
    with zipfile.ZipFile(wheel) as z: text = z.read(next(n for n in z.namelist() if n.endswith('dist-info/METADATA')))
    m = Metadata.from_email(text, validate=True)
    assert m.name == 'kinetics_dance' and '# kinetics_dance' in m.description and {'train', 'cluster', 'track', 'export', 'encoders'} <= set(m.provides_extra)
    core = {r.name for r in m.requires_dist if not r.marker or 'extra' not in str(r.marker)}
    assert 'torch' in core and not core & {'fastai', 'yt-dlp', 'nbdev', 'sphinx'}


def test_a_repacked_archive_has_no_date_of_its_own(tmp_path):
    for name in 'ab':
        with tarfile.open(tmp_path/f'{name}.tar.gz', 'w:gz') as t:
            for f in ('2', '1') if name == 'a' else ('1', '2'):
                (tmp_path/f).write_text(f)
                os.utime(tmp_path/f, (time.time(), time.time() - (100 if name == 'a' else 200)))
                t.add(tmp_path/f, f'x/{f}')
        repack(tmp_path/f'{name}.tar.gz', 10**9)
    assert (tmp_path/'a.tar.gz').read_bytes() == (tmp_path/'b.tar.gz').read_bytes()


def test_descriptions():
    "The same title, version and authors everywhere"
    files = describe(ROOT)
    zenodo, codemeta, cff = json.loads(files['.zenodo.json']), json.loads(files['codemeta.json']), yaml.safe_load(files['CITATION.cff'])
    assert zenodo['version'] == codemeta['version'] == str(cff['version']) and zenodo['title'] == cff['title']
    assert len(zenodo['creators']) == len(codemeta['author']) == len(cff['authors'])
    assert re.fullmatch(r'\d{4}-\d\d-\d\d', zenodo['publication_date']) and codemeta['@context'].startswith('https://w3id.org/codemeta/')


def workflow(name): return yaml.safe_load((ROOT/f'.github/workflows/{name}.yml').read_text())


def test_publishing_needs_no_secret():
    "Only the job that publishes may ask for a token, runs nothing of ours, and takes what the other has built and checked"
    w = workflow('publish')
    assert w['permissions'] == {'contents': 'read'} and w[True] == {'push': {'tags': ['v*']}}      # YAML reads `on` as true
    assert 'permissions' not in w['jobs']['build'] and w['jobs']['publish']['permissions'] == {'id-token': 'write'}
    assert not [s for s in w['jobs']['publish']['steps'] if 'run' in s] and w['jobs']['publish']['needs'] == 'build'
    assert 'secrets.' not in (ROOT/'.github/workflows/publish.yml').read_text()
    steps = ' '.join(s.get('run', '') for s in w['jobs']['build']['steps'])
    for program in ('twine check --strict', 'check-wheel-contents', 'diff -r dist again'): assert program in steps


def test_matrix_of_platforms():
    "Every Python on Linux, both ends of the bounds, macOS, Windows, ARM; files that exist"
    m = workflow('platforms')['jobs']['library']
    matrix, steps = m['strategy']['matrix'], ' '.join(s.get('run', '') for s in m['steps'])
    assert matrix['python'] == ['3.11', '3.12', '3.13', '3.14'] and {x['os'].split('-')[0] for x in matrix['include']} == {'ubuntu', 'macos', 'windows'}
    assert {x['resolution'] for x in matrix['include']} == {'lowest-direct', 'highest'}
    tests = re.findall(r'tests/\w+\.py', steps)
    assert tests and all((ROOT/t).is_file() for t in tests)
