"Settings are declared once, and read by one reader: the runner, every command and the library say the same."
import json, re, subprocess, sys
import pytest
from hypothesis import given, settings as limits, strategies as st
import preloaded
from conftest import ROOT
from kinetics_dance.core.base import StudyError
from kinetics_dance.core.settings import check_settings, defaults, json_schema, stage_of
from kinetics_dance.study.settings import file_settings, notebook_settings, read_settings
from report.common import UserError, declared, load_nb, notebooks, study_files
from report.study import load_study

STAGES = [s for s in notebooks(ROOT) if s[:2].isdigit()]


def write(folder, name, text):
    (folder/'studies').mkdir(exist_ok=True)
    path = folder/'studies'/f'{name}.yaml'
    path.write_bytes(text) if isinstance(text, bytes) else path.write_text(text)
    return path


def test_notebooks_and_declarations_agree():
    """Each parameter of a stage is declared with the same default, or None: as the study has it. Each declared setting is a
    parameter of some stage, or one that the notebooks of models take among their overrides."""
    seen = {}
    for s in STAGES: seen |= declared(load_nb(notebooks(ROOT)[s]))
    assert seen.pop('overrides') == {}
    assert {k: v for k, v in seen.items() if v is not None or defaults()[k] is None} == {
        k: v for k, v in defaults().items() if k in seen and (seen[k] is not None or v is None)}
    assert all(stage_of(k) == 'models' for k in set(defaults()) - set(seen))


def test_one_setting_from_outside(tmp_path):
    "What a notebook is given wins over the study file, which wins over the defaults; a mistake is one line"
    s = notebook_settings('smoke', str(tmp_path), dict(batch_size=3), lstm_hidden=16, lstm_layers=None)
    assert (s.batch_size, s.lstm_hidden, s.lstm_layers, s.epochs, s.runs) == (3, 16, 1, 2, str(tmp_path))
    for overrides, own, says in ((dict(epoch=5), {}, "overrides: unknown key 'epoch' (did you mean 'epochs'"), (dict(epochs='x'), {}, 'overrides: epochs'),
                                 ([1], {}, 'is no mapping'), (dict(runs='x'), {}, 'is a parameter of the notebook'),
                                 (dict(lstm_hidden=8), dict(lstm_hidden=16), 'is a parameter of the notebook')):
        with pytest.raises(StudyError, match=re.escape(says)) as e: notebook_settings('smoke', str(tmp_path), overrides, **own)
        assert '\n' not in str(e.value)
    with pytest.raises(StudyError, match='there is no nowhere.yaml'): notebook_settings('nowhere', str(tmp_path), {})


WRONG = [('epochz: 3', "unknown key 'epochz'"), ('epochs: 3\nepochs: 4', "key 'epochs' is given twice"),
         ('n_train: true', 'n_train: expected a whole number, got true or false'), ('seeds: [a]', "seeds: in the list, expected a whole number"),
         ('backbone_lr: 1e-3', 'write 0.001'), ('n_valid: -1', 'n_valid: -1 is too small; give at least 0'), ('- a', 'must be a mapping'),
         ('a: [1', 'not valid YAML'), ('study: demo', "study is 'demo', but the file is named 'mine'"), (b'\xff\xfe\x00', 'not valid YAML'),
         ('n_test: null', 'expected a whole number'), ('1: 2', 'must be a mapping'), ('source: utube', 'none of')]


@pytest.mark.parametrize('text, says', WRONG, ids=[str(t)[:20] for t, _ in WRONG])
def test_every_reader_refuses_it(tmp_path, text, says):
    "The library, the runner and the commands, each with one line that names the file"
    path = write(tmp_path, 'mine', text)
    with pytest.raises(StudyError, match='mine.yaml') as e: read_settings(path)
    assert says in str(e.value) and '\n' not in str(e.value)
    if says != 'none of':
        with pytest.raises(UserError) as e: load_study(path, ROOT)
        assert says in str(e.value)
    for command in ('download', 'frames', 'train', 'status'):
        if text in ('a: [1', 'epochz: 3'):
            p = preloaded.run([sys.executable, '-m', 'kinetics_dance.study.cli', command, '--study', str(path)], libraries='light', cwd=ROOT, capture_output=True, text=True)
            assert p.returncode == 2 and says in p.stderr and len(p.stderr.strip().splitlines()) == 1, p.stderr


def test_a_study_is_named_by_its_file(tmp_path):
    "A file without a line `study:` is not the demo"
    path = write(tmp_path, 'mine', 'n_train: 3\n')
    assert read_settings(path)['study'] == 'mine' == load_study(path, ROOT)[0]
    assert file_settings(path) == dict(study='mine', n_train=3)


@limits(max_examples=150, deadline=None)
@given(st.one_of(st.binary(max_size=200), st.text(max_size=200).map(str.encode),
                 st.dictionaries(st.sampled_from([*defaults(), 'other']), st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
                                 lambda x: st.lists(x, max_size=3), max_leaves=4), max_size=4).map(lambda d: json.dumps(d).encode())))
def test_any_bytes_are_settings_or_one_line(tmp_path_factory, data):
    path = write(tmp_path_factory.getbasetemp(), 'any', data)
    try: file_settings(path)
    except StudyError as e: assert len(str(e).splitlines()) == 1


def test_schema_beside_the_studies():
    "`python -m report.schema` would not change it, and every study file passes it"
    import jsonschema, yaml
    schema = json.loads((ROOT/'studies/schema.json').read_text())
    assert schema == json.loads(json.dumps(json_schema())), 'make export writes studies/schema.json'
    for f in study_files(ROOT):
        assert f.read_text().startswith('# yaml-language-server: $schema=schema.json'), f.name
        jsonschema.validate(yaml.safe_load(f.read_text()), schema)
    with pytest.raises(jsonschema.ValidationError): jsonschema.validate({'epochz': 3}, schema)


def test_the_command_lists_them():
    def run(*args): return subprocess.run([sys.executable, '-m', 'kinetics_dance.study.cli', 'settings', *args], cwd=ROOT, capture_output=True, text=True)
    out = json.loads(run('--json').stdout)
    assert {r['name'] for r in out} == set(defaults())
    assert 'passes over the training clips' in run('epochs').stdout
    p = run('epochz')
    assert p.returncode == 2 and "did you mean 'epochs'" in p.stderr
    assert json.loads(run('n_train', '--study', 'smoke', '--json').stdout)[0]['value'] == 4


def cli(tmp_path, *args, rc=0):
    p = preloaded.run([sys.executable, '-m', 'kinetics_dance.study.cli', *map(str, args)], libraries='light', cwd=tmp_path, capture_output=True, text=True)
    assert p.returncode == rc, p.stdout + p.stderr
    return p


@pytest.fixture
def small(tmp_path):
    "A project with two folders of videos and a study on the first"
    from kinetics_dance.synthetic.dancers import render_clip
    from kinetics_dance.synthetic.uploads import write_video
    (tmp_path/'settings.ini').write_text('[DEFAULT]\n')
    frames = render_clip('wave', 0, 1)[:12]
    for folder in ('videos', 'others'):
        for label in 'ab':
            (tmp_path/folder/label).mkdir(parents=True)
            for i in range(3): write_video(tmp_path/folder/label/f'{folder}{i}.mp4', frames[:7 + 2*i + (label == 'b')])
    write(tmp_path, 'mine', 'source: folder\nfolder: videos\ncontains: ""\nn_train: 0\nn_valid: 1\nn_test: 0\nshort_side: 64\n')
    return tmp_path


def test_a_folder_belongs_to_its_lists(small):
    "A study file that was copied or edited cannot overwrite the clips of another study; --replace says yes"
    cli(small, 'download', '--study', 'mine')
    table = (small/'runs/mine/clips.csv').read_bytes()
    assert not (small/'runs/demo').exists()
    other = (small/'studies/mine.yaml').read_text().replace('folder: videos', 'folder: others')
    write(small, 'mine', other)
    p = cli(small, 'download', '--study', 'mine', rc=2)
    assert len(p.stderr.strip().splitlines()) == 1 and "folder: 'videos', not 'others'" in p.stderr and '--replace' in p.stderr
    assert (small/'runs/mine/clips.csv').read_bytes() == table
    (small/'runs/mine/origin.json').unlink()           # as version 0.1.0 left a folder
    assert 'holds the clips of other lists' in cli(small, 'download', '--study', 'mine', rc=2).stderr
    cli(small, 'download', '--study', 'mine', '--replace')
    assert b'others0' in (small/'runs/mine/clips.csv').read_bytes()


def test_a_folder_of_an_older_version_is_taken_over(small):
    "The same clips, no note: it gets one"
    cli(small, 'download', '--study', 'mine')
    (small/'runs/mine/origin.json').unlink()
    cli(small, 'download', '--study', 'mine')
    assert json.loads((small/'runs/mine/origin.json').read_text())['folder'] == 'videos'
