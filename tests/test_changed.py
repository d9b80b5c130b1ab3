"`make test CHANGED=1`: what runs after a change, on a small project of the same shape."
import shutil, subprocess
import pytest
from conftest import make_nb
from report.changed import changed_files, choose, extract, merge_base

FILES = {
    'settings.ini': '[DEFAULT]\nlib_name = toy\n',
    'constraints.txt': 'numpy==2\n',
    'studies/small.yaml': 'n: 1\n',
    'NOTES': 'text\n',
    'toy/__init__.py': '', 'toy/video/__init__.py': '',
    'toy/video/reading.py': 'def read(x): return x\ndef other(x): return x\n',
    'toy/data.py': 'from .video.reading import read\ndef use(x): return read(x)\n',
    'report/__init__.py': '',
    'report/tool.py': 'from .more import k\ndef tool(): return k\n', 'report/more.py': 'k = 1\n',
    'tests/conftest.py': 'import pytest\nfrom pathlib import Path\nROOT = Path(__file__).parent.parent\n'
                         'def make(): return 1\n@pytest.fixture\ndef made(): return make()\n'
                         '@pytest.fixture\ndef study(): return ROOT/"studies"/"small.yaml"\n',
    'tests/helper.py': 'from toy.video.reading import other\n',
    'tests/test_read.py': 'from toy.video.reading import read\ndef test(): read(1)\n',
    'tests/test_helper.py': 'import helper\ndef test(): helper.other(1)\n',
    'tests/test_fixture.py': 'def test(made): assert made\n',
    'tests/test_study.py': 'def test(study): assert study.exists()\n',
    'tests/test_command.py': 'from subprocess import run\n'
                             'def test(): run(["python", "-m", "toy.data"])\n',
    'tests/test_script.py': 'CODE = """\nfrom toy.video.reading import other\nother(1)\n"""\n'
                            'def test(): exec(CODE)\n',
    'tests/test_tool.py': 'from report.tool import tool\ndef test(): tool()\n',
    'tests/test_notebooks.py': 'NBS = notebooks(1)\ndef test_notebook(): pass\n',
}
NOTEBOOK_TESTS = 'tests/test_notebooks.py'
READ, OTHER = 'nbs/video/00_reading.ipynb', 'nbs/01_other.ipynb'
NOTEBOOKS = {'nbs/00_data.ipynb': 'from toy.data import use\nuse(1)', OTHER: 'print(1)',
             READ: 'from toy.video.reading import read\nread(1)'}
DATA, READING = ('notebook 00_data', 'notebook video/00_reading')


@pytest.fixture
def project(tmp_path):
    for name, text in FILES.items():
        (tmp_path/'new'/name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path/'new'/name).write_text(text)
    for name, text in NOTEBOOKS.items():
        (tmp_path/'new'/name).parent.mkdir(parents=True, exist_ok=True)
        make_nb(tmp_path/'new'/name, text)
    shutil.copytree(tmp_path/'new', tmp_path/'old')
    return tmp_path/'new', tmp_path/'old'


def short(chosen):
    "Names of what was chosen, in a word each"
    names = (k.replace(f'{NOTEBOOK_TESTS}::test_notebook[', 'notebook ').rstrip(']') for k in chosen)
    return {n.removeprefix('tests/test_').removesuffix('.py') for n in names}


@pytest.mark.parametrize('file, old, new, expected', [
    ('toy/video/reading.py', 'read(x): return x', 'read(x): return x + 1',
     {'read', 'command', 'study', DATA, READING}),
    ('toy/video/reading.py', 'other(x): return x', 'other(x): return x + 1', {'helper', 'script'}),
    ('toy/video/reading.py', 'def read', '# a comment\ndef read', set()),
    ('toy/data.py', 'return read(x)', 'return 2*read(x)', {'command', 'study', DATA}),
    ('tests/helper.py', 'import other', 'import other  # a comment', set()),
    ('tests/helper.py', 'import other', 'import other, read', {'helper'}),
    ('tests/helper.py', 'import other', 'import other\nx = 1', {'helper'}),
    ('tests/conftest.py', 'return 1', 'return 2', {'fixture'}),
    ('tests/test_read.py', 'read(1)', 'read(2)', {'read'}),
    ('report/more.py', 'k = 1', 'k = 2', {'tool'}),
    ('studies/small.yaml', 'n: 1', 'n: 2', {'study'}),
    (OTHER, 'print(1)', 'print(2)', {'study', 'notebook 01_other'}),
    (READ, 'read(1)', 'read(2)', {READING}),
    (READ, 'read(1)', '%time read(1)', {READING}),
    (READ, '"from', '"#| notest\\nfrom', {READING}),
])
def test_what_a_change_can_affect(project, file, old, new, expected):
    root, base = project
    text = (root/file).read_text()
    assert old in text
    (root/file).write_text(text.replace(old, new))
    chosen, everything, total = choose(root, base, [file])
    assert short(chosen) == expected and everything is None
    assert total == len(NOTEBOOKS) + sum('/test_' in f for f in FILES)
    assert all(chosen.values()), 'each with a reason'


ODD = 'NOTES', 'constraints.txt', 'settings.ini', 'report/new.py', 'elsewhere/x.bin'


@pytest.mark.parametrize('file', ODD)
def test_what_cannot_be_mapped_runs_everything(project, file):
    assert file in choose(*project, [file])[1]


def test_files_that_come_and_go(project):
    root, base = project
    (root/'tests/test_new.py').write_text('def test(): pass\n')
    (root/'toy/video/reading.py').write_text('def read(x): return x\n')      # `other` is gone
    (root/'tests/test_read.py').unlink()
    files = ['tests/test_new.py', 'toy/video/reading.py', 'tests/test_read.py']
    chosen, everything, _ = choose(root, base, files)
    assert short(chosen) == {'new', 'helper', 'script'} and everything is None


def test_what_git_says(project, tmp_path):
    "The branch's commits, the working tree, and files that git does not know"
    root, _ = project
    def git(*args):
        line = ['git', '-c', 'user.name=a', '-c', 'user.email=a@b', *args]
        subprocess.run(line, cwd=root, check=True, capture_output=True)
    assert merge_base(root) is None
    git('init', '-b', 'main'), git('add', '-A'), git('commit', '-m', 'first')
    git('checkout', '-b', 'work')
    base = merge_base(root)
    assert changed_files(root, base) == []
    (root/'NOTES').write_text('committed')
    git('commit', '-am', 'second')
    (root/'toy/data.py').unlink()
    (root/'tests/test_é x.py').write_text('')
    assert merge_base(root) == base
    assert changed_files(root, base) == ['NOTES', 'tests/test_é x.py', 'toy/data.py']
    extract(root, base, tmp_path/'was')
    assert (tmp_path/'was/NOTES').read_text() == 'text\n' and (tmp_path/'was/toy/data.py').exists()
