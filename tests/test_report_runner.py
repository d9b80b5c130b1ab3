"The papermill runner on toy projects: order, freshness, failures, kills."
import json, os, signal, time
import psutil, pytest


def models(toy): return json.loads((toy.folder/'report.json').read_text())['models']


def edit(toy, nb, old, new):
    p = toy.root/f'nbs/{nb}.ipynb'
    text = p.read_text()
    assert old in text
    p.write_text(text.replace(old, new))


def snapshot(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob('*')
            if p.is_file() and not {'stages', 'executed'} & set(p.parts) and p.name not in ('record.json', '.lock', 'report.json', 'log', 'here')}


def test_order_and_freshness(toy):
    toy.run()
    ran = toy.ran()
    assert ran[0] == '00' and set(ran[1:3]) == {'02', '03'} and ran[3:] == ['05', 'index']
    assert models(toy) == {'a': '10.0', 'b': '20.0'}            # (0 + 2 + 4) * 1.5 + 1 epoch, and b's shift of 10
    seconds = json.loads((toy.folder/'report.json').read_text())['seconds']
    assert set(seconds) == {'00_data', '02_a', 'parts/00_helper', '03_b', '05_comparison', 'index'} and all(seconds.values())
    assert not [p for p in (toy.folder/'executed/.running').rglob('*') if p.is_file()]

    t0 = time.time()
    assert 'fresh' in toy.run().stdout and toy.ran() == []      # nothing changed
    assert time.time() - t0 < 10

    toy.study('study: toy\nn: 3\nlr: 0.5\n')                    # only 02 declares it; its output stays the same
    toy.run(); assert toy.ran() == ['02']

    edit(toy, '02_a', '+ epochs', '+ 2*epochs')                 # code: this notebook and what reads its output
    assert 'code changed' in toy.run().stdout
    assert toy.ran() == ['02', '05', 'index'] and models(toy)['a'] == '11.0'

    edit(toy, '02_a', '+ 2*epochs', '+ epochs*2  # twice')      # …which writes the same bytes: it alone
    toy.run(); assert toy.ran() == ['02']

    edit(toy, '02_a', '# Model a', '# Model A')                 # prose and comments: nothing runs, the page follows
    edit(toy, '02_a', '# twice', '# two times')
    toy.run(); assert toy.ran() == []
    page = (toy.folder/'executed/02_a.ipynb').read_text()
    assert '# Model A' in page and 'two times' in page and json.loads(page)['cells'][2]['metadata']['tags'] == ['injected-parameters']
    assert '"execution_count": 3' in page

    edit(toy, 'parts/00_helper', 'shift = 10', 'shift = 11')         # a library module: who imports it, and what follows
    toy.run(); assert toy.ran() == ['03', '05', 'index'] and models(toy)['b'] == '21.0'

    (toy.folder/'predictions/b/seed0.parquet').unlink()         # an output is gone, or not what was written
    assert 'output missing' in toy.run().stdout
    assert toy.ran() == ['03']
    (toy.folder/'predictions/b/seed0.parquet').write_text('99')
    assert 'output changed' in toy.run().stdout
    assert toy.ran() == ['03'] and models(toy)['b'] == '21.0'

    (toy.root/'locks/report.txt').write_text('papermill==2.7.1\n')
    toy.run(); assert toy.ran()[0] == '00' and len(toy.ran()) == 0


@pytest.mark.parametrize('text, message', [
    ('n: 3\nepochz: 2\n', "unknown key 'epochz'; did you mean 'epochs'?"),
    ('n: three\n', "n: expected a whole number, got text 'three'"),
    ('scale: 1e-3\n', 'YAML reads 1e-3 as text: write 0.001'),
    ('n: true\n', 'n: expected a whole number, got true or false True'),
    ('n: null\n', 'n: expected a whole number, got null None'),
    ('study: other\n', "study is 'other', but the file is named 'toy'"),
    ('n: 3\nn: 4\n', "key 'n' is given twice"),
    ('- a\n- b\n', 'must be a mapping'),
    ('n: [3\n', 'not valid YAML'),
])
def test_mistakes_in_a_study_file(toy, text, message):
    toy.study(text)
    p = toy.run(rc=2)
    assert len(p.stderr.splitlines()) == 1 and p.stderr.startswith('error: studies/toy.yaml') and message in p.stderr
    assert not (toy.root/'runs').exists() and not (toy.root/'toy/data.py').exists()


def test_missing_study_file(toy):
    p = toy.run(rc=2, study='studies/no.yaml')
    assert p.stderr == 'error: studies/no.yaml: no such study file (in studies/: toy)\n'


def test_what_the_library_knows(toy):
    "`check_study` of the library's data module sees defaults and study values together, before anything is written"
    nb = json.loads((toy.root/'nbs/00_data.ipynb').read_text())
    nb['cells'][3]['source'] = ["#| export\nclass StudyError(ValueError): pass\n", "def double(x): return 2*x\n",
                                "def check_study(params, root):\n", "    if params['scale'] > 1: raise StudyError(f\"scale: {params['scale']} is over 1 in {root.name}\")\n"]
    (toy.root/'nbs/00_data.ipynb').write_text(json.dumps(nb))
    p = toy.run(rc=2)
    assert p.stderr == 'error: studies/toy.yaml: scale: 1.5 is over 1 in p\n' and not toy.folder.exists()


def test_failing_cell_and_resume(toy):
    edit(toy, '03_b', "(d/'seed0", "1/0 if epochs > 1 else (d/'seed0")
    toy.study('study: toy\nn: 3\nepochs: 2\n')
    p = toy.run(rc=1)
    assert 'error: 03_b.ipynb cell 8 (In [7]): ZeroDivisionError: division by zero' in p.stderr
    assert (toy.folder/'executed/.failed/03_b.ipynb').exists() and not (toy.folder/'executed/03_b.ipynb').exists()
    assert sorted(toy.ran()) == ['00', '02', '03']              # the one beside it finished, nothing new was started
    edit(toy, '03_b', '1/0', '0')
    edit(toy, '03_b', 'if epochs > 1 else', 'or')
    toy.run(); assert toy.ran() == ['03', '05', 'index']
    edit(toy, '03_b', 'x = sum', "class StudyError(ValueError): pass\\nraise StudyError('row 3 of x.csv')\\nx = sum")
    assert 'StudyError: row 3 of x.csv' in toy.run(rc=2).stderr


def test_side_by_side(toy):
    "Each model notebook waits until the other one has started: one after the other, neither would come to an end"
    for nb, mine, other in (('02_a', 'A', 'B'), ('03_b', 'B', 'A')):
        edit(toy, nb, "d.mkdir(", f"(run/'{mine}').touch()\\nwhile not (run/'{other}').exists(): time.sleep(.05)\\nassert os.environ['OMP_NUM_THREADS'] == '1'\\nd.mkdir(")
    toy.run(); assert models(toy) == {'a': '10.0', 'b': '20.0'}


def wait_for(what, seconds=30):
    t0 = time.time()
    while not what():
        assert time.time() - t0 < seconds
        time.sleep(.05)


@pytest.mark.parametrize('sig, rc', [(signal.SIGKILL, -9), (signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_kill_lock_and_resume(toy, tmp_path, sig, rc):
    "Killed in the middle of 02; a second run is told who holds the lock; the next one goes on and ends as if nothing had been"
    edit(toy, '02_a', "d.mkdir(", "(run/'here').write_text(str(os.getpid()))\\nwhile not (run/'go').exists(): time.sleep(.05)\\nd.mkdir(")
    p = toy.popen()
    wait_for(lambda: (toy.folder/'here').exists() and (toy.folder/'here').read_text())
    kernel = int((toy.folder/'here').read_text())
    if sig == signal.SIGKILL:
        assert f'is being run by process {p.pid}' in toy.run(rc=2).stderr
    wait_for(lambda: (toy.folder/'stages/03_b.json').exists())
    os.kill(p.pid, sig)
    _, err = p.communicate(timeout=30)
    assert p.returncode == rc
    if sig == signal.SIGINT: assert 'goes on from there' in err
    wait_for(lambda: not psutil.pid_exists(kernel) or psutil.Process(kernel).status() == 'zombie')
    (toy.folder/'go').touch(); toy.ran()
    toy.run()
    assert toy.ran() == ['02', '05', 'index'] and models(toy) == {'a': '10.0', 'b': '20.0'}
    if sig == signal.SIGKILL:                                   # the same bytes as a run that nobody killed
        done = snapshot(toy.folder)
        toy.run('--force')
        assert snapshot(toy.folder) == done


def test_record(toy):
    toy.run('--only', '00')
    rec = json.loads((toy.folder/'record.json').read_text())
    assert rec['parameters']['n'] == 3 and rec['parameters']['scale'] == 1.5 and list(rec['seconds']) == ['00_data']
    assert str(toy.root) not in json.dumps(rec) and os.uname().nodename not in json.dumps(rec)
    assert 'needs 00' not in toy.run('--only', '02').stderr and toy.ran() == ['00', '02']


def test_report_of_another_study(toy):
    "A notebook with a parameter `contrast` runs again when the report of that study says something else, and only then"
    edit(toy, '05_comparison', "study = 'demo'", "study = 'demo'; contrast = 'other'")
    toy.run(); toy.ran()
    other = toy.folder.parent/'other/report.json'
    other.parent.mkdir()
    other.write_text('{"seconds": {"a": 1}, "x": 1}')
    assert 'study other' in toy.run().stdout and '05' in toy.ran()
    other.write_text('{"seconds": {"a": 2}, "x": 1}')
    toy.run(); assert toy.ran() == []


def test_changed_numbers(toy, tmp_path):
    "What differs between two reports is said, with the tolerance; times may differ more, and another machine is no news"
    from report.run import changed_numbers
    def write(folder, rep, cpu='this'):
        folder.mkdir(exist_ok=True)
        (folder/'report.json').write_text(json.dumps(rep))
        (folder/'record.json').write_text(json.dumps({'machine': {'cpu': cpu}}))
    old = {'seconds': {'05': 3.}, 'n': 12, 'models': {'a': {'accuracy': {'mean': .5, 'low': None}}}, 'valid': True,
           'pairs': [{'a': 'x', 'b': 'y', 'diff': .25}], 'costs': [{'model': 'a', 'ms_per_clip': 20., 'parameters': 100}]}
    new, d, here = json.loads(json.dumps(old)), tmp_path/'s', {'cpu': 'this'}
    new['seconds']['05'], new['costs'][0]['ms_per_clip'] = 9., 29.
    new['models']['a']['accuracy']['mean'] += 1e-8
    write(d, new)
    assert changed_numbers(None, None, d) is None
    assert changed_numbers(old, here, d).startswith('report.json: none of 5 numbers changed') and 'tolerance 1e-06' in changed_numbers(old, here, d)
    new['pairs'][0]['diff'], new['costs'][0]['parameters'], new['models']['a']['accuracy']['low'] = .26, 101, .4
    write(d, new)
    said = changed_numbers(old, here, d)
    assert '3 of 6 numbers changed' in said and 'pairs.x y.diff: 0.25 → 0.26' in said and "models.a.accuracy.low: not there → 0.4" in said
    assert 'another machine' in changed_numbers(old, {'cpu': 'that'}, d)
    toy.run()
    edit(toy, '05_comparison', "'seconds': {},", "'seconds': {}, 'k': 1,")
    assert "k: not there → 1" in toy.run().stdout


def with_controls(toy):
    for nb in '02_a', '03_b':
        edit(toy, nb, "epochs = 1", "epochs = 1\\noverrides = {}")
        edit(toy, nb, "d.mkdir(", "(run/f'controls_{d.name}').write_text(str(overrides['controls']))\\nd.mkdir(")
    edit(toy, '03_b', "d.mkdir(", "c = run/'predictions/shuffled_lstm'\\nif overrides['controls']: c.mkdir(exist_ok=True); (c/'seed0.parquet').touch()\\nd.mkdir(")
    toy.study('study: toy\nn: 3\noverrides: {controls: true}\n')


def test_controls_come_after_the_answer(toy):
    "The stages run without them first; a study that has them already does not run twice"
    with_controls(toy)
    out = toy.run().stdout
    ran = toy.ran()
    assert ran.count('00') == 1 and ran[3:5] == ['05', 'index'] and sorted(ran[5:7]) == ['02', '03'] and ran[7:] == ['05', 'index'], ran
    assert '02_a: starts (parameters changed: controls)' in out and (toy.folder/'controls_a').read_text() == 'True'
    assert json.loads((toy.folder/'stages/03_b.json').read_text())['key']['parameters']['overrides']['controls'] is True
    assert 'are fresh' in toy.run().stdout and toy.ran() == []
    edit(toy, '02_a', 'x = sum', 'y = 1\\nx = sum')
    toy.run()
    assert toy.ran() == ['02']


def test_killed_before_its_controls(toy):
    "The next run does not begin again with what it has"
    with_controls(toy)
    edit(toy, '03_b', "d.mkdir(", "if overrides['controls'] and not (run/'go').exists(): 1/0\\nd.mkdir(")
    toy.run(rc=1)
    assert toy.ran().count('00') == 1 and (toy.folder/'executed/05_comparison.ipynb').exists()
    (toy.folder/'go').touch()
    toy.run()
    assert '00' not in (ran := toy.ran()) and ran[-2:] == ['05', 'index'] and (toy.folder/'controls_b').read_text() == 'True'
