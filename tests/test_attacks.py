"Attacks by somebody who had not seen how the faults of issue 20 were mended; each of these worked"
import contextlib, io, shutil, warnings
import pytest


def cli(folder, *args, rc=0):
    "A command as a user types it, in this process: what it said"
    from kinetics_dance.study.cli import main
    out, err = io.StringIO(), io.StringIO()
    with contextlib.chdir(folder), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), warnings.catch_warnings():
        with pytest.raises(SystemExit) as end: main(args)
    assert (end.value.code or 0) == rc, out.getvalue() + err.getvalue()
    if rc == 2: assert len(err.getvalue().strip().splitlines()) == 1, err.getvalue()
    return out.getvalue() + err.getvalue()


def study(at, name='mine', **changes):
    "A study file on the videos of `project`"
    said = dict(source='folder', folder='videos', contains="''", n_train=0, n_valid=1, n_test=0, short_side=48, n_frames=8, clip_frames=8, seeds='[0]', epochs=1, lr='[0.002]') | changes
    (at/'studies').mkdir(exist_ok=True)
    (at/'studies'/f'{name}.yaml').write_text(''.join(f'{k}: {v}\n' for k, v in said.items()))


@pytest.fixture(scope='module')
def made(tmp_path_factory):
    "A project with two classes of three videos, and a study of them with its frames"
    from kinetics_dance.video.decoding import numbered_clip
    at = tmp_path_factory.mktemp('project')
    (at/'settings.ini').write_text('[DEFAULT]\n')
    for k in range(6):
        to = at/'videos'/'ab'[k % 2]/f'v{k}.mp4'
        to.parent.mkdir(parents=True, exist_ok=True)
        numbered_clip(to, n=9 + k, size=(48, 64), sound=False)
    study(at)
    cli(at, 'download', '--study', 'mine')
    cli(at, 'frames', '--study', 'mine')
    return at


@pytest.fixture
def project(made, tmp_path):
    shutil.copytree(made, tmp_path/'p', symlinks=True)
    return tmp_path/'p'


# 1. another study's folder

def test_two_studies_do_not_share_a_storage(project):
    "The frames of the one were deleted for those of the other, which the first then trained on"
    study(project, 'one')
    study(project, 'two', n_frames=9)
    cli(project, 'download', '--study', 'one', '--storage', 'disk')
    cli(project, 'frames', '--study', 'one', '--storage', 'disk')
    cli(project, 'frames', '--study', 'one')
    frames = {p.name: p.read_bytes() for p in (project/'disk/frames').iterdir()}
    said = cli(project, 'download', '--study', 'two', '--storage', 'disk', rc=2)
    assert 'runs/one' in said and 'a storage of its own' in said
    assert 'is the folder of another study' in cli(project, 'download', '--study', 'two', '--storage', 'runs/mine', rc=2)
    assert {p.name: p.read_bytes() for p in (project/'disk/frames').iterdir()} == frames


def test_every_command_knows_which_lists_a_folder_was_made_from(project):
    "Only `download` did: frames were stored, and models trained, of clips that the study file does not name"
    shutil.copytree(project/'videos', project/'others')
    study(project, folder='others')
    for command in ('frames', 'train', 'download'):
        assert "folder: 'videos', not 'others'" in cli(project, command, '--study', 'mine', rc=2)


def test_training_refuses_frames_of_other_settings(project):
    study(project, n_frames=12)
    assert 'n_frames: the frames were stored with 8, the study says 12' in cli(project, 'train', '--study', 'mine', rc=2)


def test_one_folder_spelled_in_two_ways_is_one_folder(project):
    from kinetics_dance.core.settings import defaults
    from kinetics_dance.core.base import StudyError
    from kinetics_dance.data import check_origin
    p = defaults() | dict(study='mine', runs=str(project/'runs'), source='folder', folder=str(project/'videos'))
    check_origin(p, replace=True)
    check_origin(p | dict(folder=f'{project}/others/../videos'))
    with pytest.raises(StudyError, match='folder: '): check_origin(p | dict(folder=str(project)))


@pytest.mark.parametrize('note', ['[1]', '{"a": 1}', '7', '{'])
def test_a_note_that_is_not_ours(project, note):
    (project/'runs/mine/origin.json').write_text(note)
    assert 'origin.json: was not written by kinetics_dance' in cli(project, 'frames', '--study', 'mine', rc=2)


def test_a_file_where_a_folder_should_be_is_one_line(project):
    "It was `a fault of kinetics_dance: NotADirectoryError`"
    assert 'is a file, not a folder' in cli(project, 'download', '--study', 'mine', '--runs', 'studies/mine.yaml', rc=2)


# 2 and 3. files of the user

def test_a_list_in_the_folder_of_the_study_is_not_written_over(project):
    "runs/mine/clips.csv was the user's list"
    at = project/'runs/mine/clips.csv'
    text = 'path,label\n' + ''.join(f'{p.relative_to(project)}/,{p.parent.name}\n'.replace('/,', ',') for p in sorted(project.glob('videos/*/*.mp4')))
    at.write_text(text)
    study(project, annotations='[runs/mine/clips.csv]', folder='.')
    assert 'clips.csv: was not written by kinetics_dance' in cli(project, 'download', '--study', 'mine', '--replace', rc=2)
    assert at.read_text() == text


def test_a_kept_tar_of_somebody_is_not_deleted(tmp_path):
    "A tar that cannot be read was deleted, whoever had put it there; one that we fetched is fetched anew"
    from kinetics_dance.core.base import Unavailable
    from kinetics_dance.download.cvdf import CVDF
    from faults import Faults
    clip = dict(clip_id='aaaaaaaaaaa_000000_000003', youtube_id='aaaaaaaaaaa', time_start=0., time_end=3., url='train/x.tar.gz')
    (tmp_path/'kept').mkdir()
    mine = tmp_path/'kept'/'x.tar.gz'
    mine.write_bytes(b'\x1f\x8b\x08 cut short')
    with Faults({'/train/x.tar.gz': b'\x1f\x8b\x08 no tar either'}) as server:
        def ask():
            source = CVDF(server.url, keep=str(tmp_path/'kept'), retries=0, wait=.05, timeout=5, log=lambda line: None)
            (_, got), = source.stream([clip], tmp_path/'out')
            assert isinstance(got, Unavailable)
            return got
        assert 'delete it, and it is fetched' in ask().detail
        assert mine.read_bytes() == b'\x1f\x8b\x08 cut short' and not server.hits
        mine.unlink()
        ask()
        assert not mine.exists() and server.hits


def test_a_release_writes_over_nothing_of_somebody(tmp_path):
    from report.common import UserError
    from report.release import check_release
    packed, sums = tmp_path/'lib-1-demo-m.zip', tmp_path/'SHA256SUMS'
    check_release(packed, 'lib')
    for text in ('precious\n', f"{'0'*64}  thesis.pdf\n", ''):
        sums.write_text(text)
        with pytest.raises(UserError, match='SHA256SUMS: is not of an earlier release'): check_release(packed, 'lib')
    sums.write_text(f"{'0'*64}  lib-0-demo-m.zip\n")
    check_release(packed, 'lib')
    packed.touch()
    with pytest.raises(UserError, match='lib-1-demo-m.zip'): check_release(packed, 'lib')
    sums.write_text(f"{'0'*64}  {packed.name}\n")
    check_release(packed, 'lib')


def test_a_site_keeps_links_and_what_an_old_site_cannot_have_made(tmp_path):
    from report.common import UserError
    from report.site import MARKER, check_site
    new, old = tmp_path/'new', tmp_path/'old'
    for site in (new, old): (site/'_static').mkdir(parents=True)
    (new/MARKER).write_text('index.html')
    (new/'data').symlink_to(tmp_path)
    with pytest.raises(UserError, match='data'): check_site(new)
    (old/'.stamp').write_text('0'*16)
    (old/'index.html').write_text('<link href="_static/study.css">')
    check_site(old)
    for name, text in (('thesis.pdf', 'x'), ('notes.html', '<p>mine'), ('photos/a.jpg', 'x'), ('README.md', 'x')):
        (old/name).parent.mkdir(exist_ok=True)
        (old/name).write_text(text)
        with pytest.raises(UserError, match=name): check_site(old)
        (old/name).unlink()


def test_a_rehearsal_fills_an_empty_folder_only(tmp_path):
    from rehearsal.outside import check_folder
    check_folder(tmp_path)
    check_folder(tmp_path/'new')
    (tmp_path/'elsewhere').mkdir()
    with pytest.raises(SystemExit, match='neither empty nor begun'): check_folder(tmp_path)
    (tmp_path/'clone/.git').mkdir(parents=True)
    check_folder(tmp_path)


# 5. data that changed

def test_a_class_that_is_a_link_counts(tmp_path):
    "`rglob` follows no links, the list of clips does"
    from report.run import folder_state
    (tmp_path/'nas').mkdir()
    (tmp_path/'nas/0.mp4').write_bytes(b'one')
    (tmp_path/'videos').mkdir()
    (tmp_path/'videos/a').symlink_to(tmp_path/'nas')
    was = folder_state(tmp_path/'videos')
    (tmp_path/'nas/1.mp4').write_bytes(b'two')
    assert folder_state(tmp_path/'videos') != was


@pytest.mark.parametrize('head', ['\ufeffpath,label', ' path , label', 'label,path'])
def test_the_videos_of_a_list_count_however_its_head_is_written(tmp_path, head):
    from report.run import folder_state
    (tmp_path/'a.mp4').write_bytes(b'one')
    row = 'x,a.mp4' if head.startswith('label') else 'a.mp4,x'
    (tmp_path/'list.csv').write_text(f'{head}\n{row}\n', encoding='utf-8')
    was = folder_state(tmp_path, tmp_path/'list.csv')
    (tmp_path/'a.mp4').write_bytes(b'other')
    assert folder_state(tmp_path, tmp_path/'list.csv') != was


# 6. labels

def test_the_table_for_people_holds_no_formula(tmp_path):
    "Only the tables of the comparison were made safe, clips.csv was not"
    import pandas as pd
    from kinetics_dance.clips.table import ClipTable
    table, label = ClipTable(tmp_path/'clips.sqlite'), '=HYPERLINK("http://127.0.0.1")'
    table.set(pd.DataFrame([dict(label=label, youtube_id='-a0123456789', group='+1', time_start=0., time_end=1., split='train', source='folder'),
                            dict(label='tango', youtube_id='-b0123456789', group='-b0123456789', time_start=0., time_end=1., split='train', source='youtube')]))
    table.export(tmp_path/'clips.csv')
    df = pd.read_csv(tmp_path/'clips.csv', dtype=str)
    assert df.label.tolist() == [f"'{label}", 'tango'] and df.group.tolist() == ["+1", '-b0123456789'] and df.youtube_id.str.startswith('-').all()
    assert table.frame().label.tolist() == [label, 'tango']


# 8. what is empty

def test_a_table_without_clips(project):
    "`frames` wrote an empty index and said nothing, `status` spoke of nan %"
    (project/'runs/mine/clips.sqlite').write_bytes(b'')
    index = (project/'runs/mine/frames/index.parquet').read_bytes()
    for command in ('status', 'frames'): assert 'has no clips yet' in cli(project, command, '--study', 'mine', rc=2)
    assert (project/'runs/mine/frames/index.parquet').read_bytes() == index


# 7. sizes that are each within their limits

@pytest.mark.parametrize('change, says', [
    (dict(frames=1024, crop=[1024, 1024], stored=dict(height=1024, width=1024)), 'together too large'),
    (dict(frames=1024, crop=[8, 8], stored=dict(height=4096, width=4096)), 'together too large'),
    (dict(clip_seconds=1e-9), 'clip_seconds')])
def test_sizes_of_a_config_are_limited_together(tmp_path, change, says):
    "`predict` with such a card took 5.8 GB and went on; one that was too short was called a fault of --step"
    import json
    from kinetics_dance.core.base import StudyError
    from kinetics_dance.models.config import read_config
    from kinetics_dance.models.registry import known_specs
    card = dict(format=1, model=list(known_specs())[0], arguments={}, classes=['a', 'b'], frames=8, crop=[44, 60],
                stored=dict(height=48, width=64), clip_seconds=3.)
    (tmp_path/'config.json').write_text(json.dumps(card))
    read_config(tmp_path)
    (tmp_path/'config.json').write_text(json.dumps(card | change))
    with pytest.raises(StudyError, match=says): read_config(tmp_path)


def test_what_can_be_trained_can_be_loaded():
    "A study could ask for clips of 4,096 frames, a model's description for 1,024 at most"
    from kinetics_dance.core.settings import defaults
    from kinetics_dance.core.base import StudyError
    from kinetics_dance.models.config import SCHEMA
    from kinetics_dance.study.settings import check_study
    most = SCHEMA['properties']['frames']['maximum']
    check_study(defaults() | dict(n_frames=most, clip_frames=most))
    for change in (dict(n_frames=most + 1, clip_frames=most + 1), dict(n_frames=4096, frame_height=4096, frame_width=4096),
                   dict(n_frames=most, clip_frames=most, frame_height=512, crop_height=512, frame_width=512, crop_width=512)):
        with pytest.raises(StudyError): check_study(defaults() | change)


def test_more_classes_than_any_model_has(tmp_path):
    "`predict folder --top 1000000000` made two thousand million column names"
    from kinetics_dance.inference import main
    err = io.StringIO()
    with contextlib.redirect_stderr(err), warnings.catch_warnings(), pytest.raises(SystemExit) as end:
        main(['predict', str(tmp_path), '--top', '1000000000'])
    assert end.value.code == 2 and '--top: 1000000000 classes; give at most' in err.getvalue()


@pytest.mark.parametrize('change, says', [
    (dict(seeds=[-1]), 'seeds: -1 is too small'), (dict(seeds=[10**23]), 'seeds: .* is too large'), (dict(seed=-1), 'seed: -1 is too small'),
    (dict(threads=10**8), 'threads: 100000000 is too large'), (dict(workers=10**5), 'workers: 100000 is too large')])
def test_numbers_that_only_a_library_refused(change, says):
    "A seed ended in `a fault of kinetics_dance`, threads in a crash of libgomp, workers in 100,000 processes"
    from kinetics_dance.core.base import StudyError
    from kinetics_dance.core.settings import check_settings
    with pytest.raises(StudyError, match=says): check_settings(change)
