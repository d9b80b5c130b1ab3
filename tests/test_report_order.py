"The answer comes first: stages, home page and their site before any notebook of a wing, whose outputs are kept for all studies."
import json, os, re, shutil, signal, time
import pytest
from conftest import ROOT, Toy, fill
from report.polish import check_pages
from report.wings import FOLDER, Wings

WING = 'parts/00_helper'
LEFT = "from pathlib import Path\nimport os", "p = Path('../../wing'); p.mkdir(exist_ok=True)\nnumber = len(list(p.glob('ran*')))\n(p/f'ran{number}').write_text(f\"{os.nice(0)} {Path('../../_site/data.html').exists()}\")"
REPORT = """#| study
report = json.loads(Path('../report.json').read_text())
(Path('../runs')/study/'report.json').write_text(json.dumps(report | {'study': study, 'seconds': {}}))"""


@pytest.fixture
def project(tmp_path): return make(tmp_path/'p')


def make(root, *more):
    "The toy project with a report as the real one has it, and a wing that notes when it ran"
    t = fill(Toy(root))
    t.nb('05_comparison', ('md', '# Comparison\n\n> Compares; see [the helper](parts/00_helper.ipynb#how).'), ('parameters', "study = 'demo'"),
         "import json\nfrom pathlib import Path", REPORT)
    t.nb(WING, ('md', '# Helper\n\n> Shifts: by ten.'), ('md', 'Why it is here.\n\n## How'), '#| default_exp parts.helper', '#| export\nshift = 10', *LEFT, *more)
    shutil.copy(ROOT/'results/motion/report.json', root)
    (root/'studies/other.yaml').write_text('study: other\nn: 2\n')
    return t


def ran(t): return [p.read_text() for p in sorted((t.root/'wing').glob('ran*'))]
def started(p): return re.findall(r'^(\S+): starts', p.stdout, re.M)
def site(t, *args, **kw): return t.run('--site', *args, **kw)
def bare(t, *args, **kw): return t.run(*args, study='studies/other.yaml', **kw)


def test_the_answer_comes_first(project, monkeypatch, tmp_path):
    p = site(project)
    assert started(p)[-1] == WING and 'index' in started(p)
    lines = p.stdout.splitlines()
    said = next(i for i, l in enumerate(lines) if l.startswith('the answer: '))
    assert re.match(r'the answer: accuracy on 1068 test clips: per-frame vote 91.\d %, CNN-LSTM 93.\d %, .*; open _site/index.html$', lines[said])
    assert said < lines.index(f'{WING}: starts (not run yet)')
    niceness, there = ran(project)[0].split()
    assert int(niceness) > os.nice(0) and there == 'True'        # the site was there before the wing, which runs at low priority
    assert 'Shifts' in (project.root/'_site/parts-helper.html').read_text()
    assert 'is being executed' not in (project.root/'_site/parts-helper.html').read_text()

    from report import site as lib      # another study with the same execution has nothing of it processed again
    def fails(*_, **__): raise AssertionError('nbdev runs')
    monkeypatch.setattr(lib.subprocess, 'run', fails)
    executed = {WING: project.folder/'executed'/f'{WING}.ipynb'}
    assert lib.process(project.root, [WING], executed, 'toy', tmp_path/'none', Wings(project.root/'runs').pages)[WING].exists()
    monkeypatch.undo()

    before = (project.root/'_site').stat().st_ino
    p = site(project)                                           # nothing changed: nothing runs, nothing is built
    assert started(p) == [] and 'up to date' in p.stdout and 'the answer: ' in p.stdout
    assert (project.root/'_site').stat().st_ino == before


def test_a_second_study_executes_no_wing(project):
    project.run()
    assert len(ran(project)) == 1
    p = bare(project)
    assert WING not in started(p) and len(ran(project)) == 1 and '05_comparison' in started(p)
    executed = project.root/'runs/other/executed'/f'{WING}.ipynb'
    assert executed.read_bytes() == (project.folder/'executed'/f'{WING}.ipynb').read_bytes()
    record = json.loads((project.root/'runs/other/stages'/f'{WING}.json').read_text())
    assert record['seconds'] > 0 and record['key']['versions']['python']

    project.nb(WING, ('md', '# Helper\n\n> Other words.'), '#| default_exp parts.helper', '#| export\nshift = 10  # ten', *LEFT)
    p = bare(project)                                           # prose and comments: the page follows, nothing runs
    assert started(p) == [] and 'Other words' in executed.read_text()
    project.nb(WING, ('md', '# Helper\n\n> Shifts.'), '#| default_exp parts.helper', '#| export\nshift = 11', *LEFT)
    assert WING in started(bare(project)) and len(ran(project)) == 2
    assert WING not in started(project.run()) and len(ran(project)) == 2       # nor does the first study, then


def test_what_nothing_has_changed_for_is_not_parsed_again(project, monkeypatch):
    "A key is noted with the bytes that it was made from; other bytes of the library or of the notebook, and it is made anew"
    from report import run as lib
    from report.study import load_study
    project.run('--only', '00', 'parts')
    name, params, decl, _ = load_study(project.root/'studies/toy.yaml', project.root)
    def key(stem):
        run = lib.Run(project.root, name, params, decl, None)
        return run.key(run.stages[stem])
    was = key('00_data'), key(WING)
    monkeypatch.setattr(lib, 'closure', lambda *_: {'x': 'made anew'})
    assert (key('00_data'), key(WING)) == was
    nb = project.root/'nbs/00_data.ipynb'
    nb.write_text(nb.read_text().replace('# Data', '# The data'))
    assert key('00_data')['library'] == {'x': 'made anew'} and key(WING) == was[1]
    (project.root/'toy/parts/helper.py').write_text('shift = 12')
    assert key(WING)['library'] == {'x': 'made anew'}


def test_what_is_kept_may_go_or_be_damaged(project):
    "The folder is safe to delete; a damaged file in it counts as absent; a folder of somebody else stays as it is"
    folder = project.root/'runs'/FOLDER
    project.run('--only', 'parts')
    for f in folder.glob('*.ipynb'): f.write_text(f.read_text()[:-40])
    assert WING in started(bare(project, '--only', 'parts')) and len(ran(project)) == 2
    for f in folder.iterdir(): f.unlink()
    folder.rmdir()
    folder.mkdir()
    (folder/'mine.txt').write_text('x')
    assert started(project.run('--only', 'parts')) == []        # fresh in its own study
    assert WING in started(project.run('--only', 'parts', '--force'))
    assert [p.name for p in folder.iterdir()] == ['mine.txt']


def test_only_few_executions_stay(tmp_path):
    from report.wings import KEPT
    wings, nb = Wings(tmp_path), tmp_path/'nb.ipynb'
    (tmp_path/FOLDER).mkdir()
    def key(k): return dict(code=str(k), library={'a.f': 'x', 'b.g': 'y'})
    for k in range(KEPT + 2):
        nb.write_text(str(k))
        wings.put('parts/00_helper', key(k), nb, dict(seconds=k))
        note = wings.files('parts/00_helper', key(k))[1]
        os.utime(note, (k, k))
    found = [k for k in range(KEPT + 2) if wings.get('parts/00_helper', key(k))]
    assert found == list(range(2, KEPT + 2)) and wings.get('parts/00_helper', key(3)) == (b'3', dict(seconds=3))
    moved = dict(code='3', library={'c.f': 'y', 'd.g': 'x'})    # definitions count, and not the modules they lie in
    assert wings.get('parts/00_helper', moved) and not wings.get('parts/00_helper', key(3) | dict(library={'a.f': 'z'}))


@pytest.mark.new_processes     # what outlives a process that is killed must lose its parent
@pytest.mark.parametrize('sig, rc, args', [(signal.SIGKILL, -9, ['--site']), (signal.SIGINT, 130, [])])
def test_stopped_while_a_wing_runs(tmp_path, sig, rc, args):
    "The answer's pages are there and whole; the next run executes the wing and nothing else"
    t = make(tmp_path/'p', "import time", "while not (p/'go').exists(): time.sleep(.05)")
    p, end = t.popen(*args), time.time() + 250
    while not ran(t):
        assert p.poll() is None and time.time() < end
        time.sleep(.05)
    os.kill(p.pid, sig)
    out, _ = p.communicate(timeout=60)
    assert p.returncode == rc and 'the answer: ' in out
    if args: check_answer(t)
    (t.root/'wing/go').touch()
    assert started(t.run(*args)) == [WING]
    if args: assert 'is being executed' not in (t.root/'_site/parts-helper.html').read_text()


def check_answer(t):
    pages = {f.name: f.read_text() for f in (t.root/'_site').glob('*.html')}
    assert {'index.html', 'data.html', 'comparison.html', 'parts-helper.html'} <= set(pages)
    assert 'is being executed' in pages['parts-helper.html'] and 'id="how"' in pages['parts-helper.html']
    assert check_pages(t.root/'_site', t.root) == []


def test_a_wing_that_fails_leaves_the_answer(tmp_path):
    t = make(tmp_path/'p', '1/0')
    p = site(t, rc=1)
    assert 'the answer: ' in p.stdout and 'ZeroDivisionError' in p.stderr
    assert (t.root/'_site/index.html').exists() and not list((t.root/'runs'/FOLDER).glob('*.ipynb'))


def test_a_site_that_cannot_take_its_place(tmp_path, monkeypatch):
    "The older one is there again"
    from report import site as lib
    for name in ('site', 'new'): (tmp_path/name).mkdir(); (tmp_path/name/'is').write_text(name)
    rename = os.rename
    def fails(a, b):
        if a.name == 'new': raise KeyboardInterrupt
        rename(a, b)
    monkeypatch.setattr(lib.os, 'rename', fails)
    with pytest.raises(KeyboardInterrupt): lib.replace(tmp_path/'site', tmp_path/'new', tmp_path/'old')
    assert (tmp_path/'site/is').read_text() == 'site' and not (tmp_path/'old').exists()
