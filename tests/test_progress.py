"How far a long piece of work is: bars in a terminal, rare lines in a pipe, nothing in a page, and what kernels tell in the terminal of the report."
import json, os, pty, re, select, signal, subprocess, sys, time
from types import SimpleNamespace
import pytest
from conftest import ROOT, fill, Toy
from kinetics_dance.core.progress import EventFile, Lines, Task, follow, read_events
from report.progress import FOLDER, Events, Pace, finish_time, scaled, work

WORK = """
import sys, time
from kinetics_dance.core.progress import follow
with follow('frames', 20, 'clips') as task:
    for k in range(20):
        task.update(k + 1, 'tango [red]dancing[/red]\\x1b[2J')
        if k == 10: print('a clip is gone', file=sys.stderr, flush=True)
        time.sleep(.05)
    while 'wait' in sys.argv: time.sleep(.05)
print('done')
"""


def environment(**kw):
    own = ('KINETICS_DANCE_PROGRESS', 'KINETICS_DANCE_PROGRESS_SECONDS', 'RANK')
    env = {k: v for k, v in os.environ.items() if k not in own}
    path = os.pathsep.join([str(ROOT), env.get('PYTHONPATH', '')])
    return env | dict(PYTHONPATH=path, TERM='xterm', COLUMNS='120') | kw


def in_a_terminal(command, seen=None, sig=None, timeout=100, **kw):
    "What a command writes to a terminal; once `seen` was there it gets a signal"
    ours, theirs = pty.openpty()
    p = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, cwd=ROOT, start_new_session=True, env=environment(**kw),
                         preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
    os.close(theirs)
    text, end = '', time.time() + timeout
    while time.time() < end:
        if select.select([ours], [], [], .1)[0]:
            try: data = os.read(ours, 65536)
            except OSError: data = b''
            if not data: break
            text += data.decode(errors='replace')
        if sig and seen in text:
            p.send_signal(sig)
            sig = None
    os.close(ours)
    p.wait(10)
    return text, p.returncode


def test_bars_in_a_terminal():
    text, rc = in_a_terminal([sys.executable, '-c', WORK])
    assert rc == 0 and '━' in text and 'of 20 clips' in text and ' left' in text and '\x1b[2K' in text
    assert 'a clip is gone' in text and 'done' in text
    assert '[red]dancing[/red]\\x1b[2J' in text and '\x1b[2J' not in text       # a label is no colour and moves no cursor
    assert text.rindex('\x1b[?25h') > text.rindex('\x1b[?25l')                  # the cursor is there again


def test_a_terminal_after_ctrl_c():
    text, rc = in_a_terminal([sys.executable, '-c', WORK, 'wait'], '20 of 20', signal.SIGINT)
    assert rc not in (0, None) and text.rindex('\x1b[?25h') > text.rindex('\x1b[?25l')


@pytest.mark.parametrize('more, lines', [({}, 0), (dict(KINETICS_DANCE_PROGRESS_SECONDS='0'), 20), (dict(KINETICS_DANCE_PROGRESS_SECONDS='0', RANK='1'), 0)])
def test_lines_in_a_pipe(more, lines):
    "Twenty updates in a second are no line at all, unless somebody asks for them; of several processes only the first one speaks"
    p = subprocess.run([sys.executable, '-c', WORK], cwd=ROOT, env=environment(**more), capture_output=True, text=True)
    said = [l for l in p.stderr.splitlines() if l.startswith('frames: ')]
    assert p.stdout == 'done\n' and len(said) == lines and 'a clip is gone' in p.stderr
    assert not re.search('[\x1b\r]', p.stderr)
    if said: assert re.fullmatch(r'frames: 50%, 10 of 20 clips, tango \[red\]dancing\[/red\]\\x1b\[2J, \d+ s left', said[9])


def test_a_line_every_twenty_seconds_at_most(capsys, monkeypatch):
    monkeypatch.delenv('KINETICS_DANCE_PROGRESS_SECONDS')
    now = [0.]
    lines = Lines(sys.stdout, clock=lambda: now[0])
    tasks = [Task(name, 100, screen=lines, clock=lambda: now[0]) for name in ('a', 'b')]
    said = []
    for second in range(1, 100):
        now[0] = float(second)
        for t in tasks:
            t.update(second)
            if capsys.readouterr().out: said.append(second)
    assert said == [20, 40, 60, 80]
    lines.close(tasks[0])
    now[0] = 200.
    tasks[1].update(100)
    assert capsys.readouterr().out == 'b: 100%, 0 s left\n'


NOTEBOOK = "from kinetics_dance.core.progress import follow\nwith follow('frames', 9, 'clips') as task:\n    for k in range(9): task.update(k + 1)"


@pytest.mark.parametrize('watched', [False, True])
def test_a_notebook_stays_clean(tmp_path, monkeypatch, watched):
    "One output that is empty at the end; none at all where a report reads the events"
    import nbformat
    from nbclient import NotebookClient
    for k, v in environment().items(): monkeypatch.setenv(k, v)
    monkeypatch.delenv('KINETICS_DANCE_PROGRESS', raising=False)
    file = tmp_path/'events'
    file.touch()
    if watched: monkeypatch.setenv('KINETICS_DANCE_PROGRESS', str(file))
    nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(NOTEBOOK)])
    NotebookClient(nb, kernel_name='python3', timeout=100).execute()
    shown = [o['data'] for o in nb.cells[0].outputs]
    assert shown == ([] if watched else [{'text/plain': ''}])
    assert bool(read_events(file)[0]) == watched


def test_files_of_a_run_that_was_killed(tmp_path):
    "They go, and what is not ours stays; a kernel that is still alive writes nowhere, and goes on"
    (tmp_path/FOLDER).mkdir()
    left, mine = tmp_path/FOLDER/'02_a.99.jsonl', tmp_path/FOLDER/'notes.jsonl'
    task = Task('a', 2, screen=EventFile(left, every=0))
    for f in (left, mine): f.write_text('')
    task.update(1)
    assert left.read_text()
    events = Events(tmp_path)
    assert not left.exists() and mine.exists()
    task.update(2)
    task.screen.close(task)
    assert not left.exists()

    events.begin('parts/00_b')
    path, = (p for p in (tmp_path/FOLDER).iterdir() if p != mine)
    first, second = (Task(name, 4, screen=EventFile(path, every=0)) for name in ('first', 'second'))
    assert events.latest('parts/00_b') is None
    first.update(1)
    second.update(2, 'epoch 2 of 4')
    told = events.latest('parts/00_b')
    assert (told['name'], told['share'], told['text']) == ('second', .5, 'epoch 2 of 4')
    second.screen.close(second)
    assert events.latest('parts/00_b')['name'] == 'first'
    with path.open('a') as f: f.write('{"id": 1}\n[]\nnull\n{"id": "x", "name": "y", "share": "much", "text": "", "left": null, "closed": false}\n{"id": "x", ')
    assert events.latest('parts/00_b')['name'] == 'first'
    events.end('parts/00_b')
    mine.unlink()
    events.close()
    assert not (tmp_path/FOLDER).exists()


def test_progress_never_ends_a_training(tmp_path):
    file = EventFile(tmp_path, every=0)         # a folder cannot be written to
    task = Task('a', 2, screen=file)
    task.update(1)
    task.update(2)
    file.close(task)


def test_what_a_training_tells():
    from kinetics_dance.training.runs import _Watch, _run_of
    whole, rows = Task('all models', 40), [dict(epoch=0, train_loss=2., top1=.25)]
    task = Task('cnn_lstm', 20, whole=whole)
    task.update(5)
    watch = _Watch(task, _run_of(3, dict(seeds=[0, 3, 4])))
    watch.learn = SimpleNamespace(history=SimpleNamespace(rows=rows), n_epoch=10, epoch=1, training=True, pct_train=.15)
    watch.before_fit()                          # one epoch of ten was trained before
    assert task.total == 19 and whole.total == 39
    watch.last = -1e9
    watch.after_batch()
    assert task.text == 'run 2 of 3 (seed 3), epoch 2 of 10, loss 2.000, valid accuracy 25.0%' and task.done == 5.5
    rows.append(dict(epoch=1, train_loss=1., top1=.5))
    watch.after_epoch()
    assert task.text == 'run 2 of 3 (seed 3), 2 of 10 epochs, loss 1.000, valid accuracy 50.0%'
    assert task.done == 6 and whole.done == 6
    task.update(0)
    assert whole.done == 0


def test_time_left_of_a_run(tmp_path):
    "From what notebooks took on this machine, in proportion to what they have to do; side by side where they may"
    pace = Pace(tmp_path/'.pace.json', {'cpu': 'this'})
    assert pace.expected('00_data', 10) is None                 # nothing is known of this machine
    values = dict(n_train=4, n_valid=1, n_test=4, seeds=[0], epochs=2, lr=[.1, .2], lr_epochs=1)
    assert work('00_data', values) == 9 and work('02_per_frame', values) == 16 and work('05_comparison', values) == 1
    pace.note('02_per_frame', 16, 26.)
    assert pace.expected('02_per_frame', 32) == 46.             # twice the work, but the kernel starts once
    slow = pace.expected('03_cnn_lstm', 16)
    pace.note('02_per_frame', 16, 52.)
    assert slow < pace.expected('03_cnn_lstm', 16)              # a slower machine is slower with what it has not run yet
    assert Pace(tmp_path/'.pace.json', {'cpu': 'this'}).took == pace.took
    assert Pace(tmp_path/'.pace.json', {'cpu': 'that'}).took == {}
    (tmp_path/'.pace.json').write_text('{"machine": {"cpu": "this"}, "took": {"a": [0, 1], "b": "x", "c": [1, 2]}}')
    assert Pace(tmp_path/'.pace.json', {'cpu': 'this'}).took == {'c': [1, 2]}
    assert scaled([1, 3], 5) == 3
    left, needs = dict(a=10., b=20., c=30., d=5.), dict(b=['a'], c=['a'], d=['b', 'c'])
    assert finish_time(left, needs, 2) == 45 and finish_time(left, needs, 1) == 65 and finish_time(left, needs, 2, ['a']) == 45
    assert finish_time({}, {}, 2) == 0


EPOCHS = """#| study
from kinetics_dance.core.progress import follow
(run/'here').write_text('')
with follow('a', 4) as task:
    while not (run/'go').exists():
        task.update(2, 'run 1 of 2 (seed 0), epoch 2 of 2, loss 0.500, valid accuracy 75.0%')
        time.sleep(.2)
"""


@pytest.fixture
def training(tmp_path):
    "A toy project whose first model waits for a word while it tells how far it is"
    t = fill(Toy(tmp_path/'p'))
    nb = json.loads((t.root/'nbs/02_a.ipynb').read_text())
    nb['cells'].append(dict(cell_type='code', id='epochs', metadata={}, source=EPOCHS.splitlines(True), outputs=[], execution_count=None))
    (t.root/'nbs/02_a.ipynb').write_text(json.dumps(nb))
    return t


@pytest.mark.parametrize('terminal', [False, True])
def test_a_training_in_a_kernel_reaches_the_terminal(training, terminal):
    "While it runs; the page holds none of it"
    t, told = training, 'epoch 2 of 2, loss 0.500, valid accuracy 75.0%'
    command = t.command('--only', '00', '02')
    if terminal:
        import threading
        threading.Thread(target=release, args=(t,), daemon=True).start()
        text, rc = in_a_terminal(command, COLUMNS='160')
        assert rc == 0 and '━' in text and told in text, text[-2000:]
    else:
        p = subprocess.Popen(command, cwd=ROOT, env=environment(KINETICS_DANCE_PROGRESS_SECONDS='0'), stdout=subprocess.PIPE, text=True)
        text = ''
        for line in p.stdout:
            text += line
            if told in line: (t.folder/'go').touch()
        assert p.wait(100) == 0
        assert re.search(r'^02_a: 50%, run 1 of 2 \(seed 0\), ' + re.escape(told), text, re.M), text
        assert '\x1b' not in text
    executed = (t.folder/'executed/02_a.ipynb').read_text()
    assert executed.count('valid accuracy') == 1 and not (t.folder/FOLDER).exists()     # in the source of the cell


def release(t, timeout=100):
    "Let the notebook go on once its events are there"
    end = time.time() + timeout
    while time.time() < end and not any(f.stat().st_size for f in t.folder.glob(f'{FOLDER}/02_a.*')): time.sleep(.1)
    time.sleep(2)       # for the bars to be drawn
    (t.folder/'go').touch()


def test_one_screen_a_process(monkeypatch, tmp_path):
    from kinetics_dance.core import progress
    monkeypatch.setenv('KINETICS_DANCE_PROGRESS', str(tmp_path/'none'))
    with follow('all models', 4) as whole, follow('a', 2, whole=whole) as task:
        assert whole.screen is task.screen
        task.update(1)
        assert whole.done == 1
    assert progress._SHOWN == {}
