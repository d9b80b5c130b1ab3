"File names of real sets become lists with groups; no video of theirs is needed for that."
from pathlib import Path
import av, pandas as pd, pytest
from kinetics_dance.core.base import StudyError
from kinetics_dance.synthetic import dancers, uploads
from rehearsal import real_video


@pytest.mark.parametrize('stem, found', [('daria_walk', ('walk', 'daria')), ('lena_run2', ('run', 'lena')), ('ido_wave1', ('wave one hand', 'ido')), ('ira_wave2', ('wave two hands', 'ira')),
                                         ('eli_pjump', ('jump in place', 'eli')), ('readme', None), ('eli_dance', None)])
def test_names_of_weizmann(stem, found): assert real_video.weizmann_name(Path(f'{stem}.avi')) == found


@pytest.mark.parametrize('stem, found', [('0_1_4', ('punch', 'sequence 01')), ('57_20_0', ('shake hands', 'sequence 20')), ('104_5_6', None), ('seq1', None)])
def test_names_of_ut_interaction(stem, found): assert real_video.ut_name(Path(f'{stem}.avi')) == found


@pytest.mark.parametrize('path, found', [('x/S10/videos/shrug_3_6m_full.avi', ('shrug', 'person 10')), ('S1/dynamic_videos/back_1_1m_upper.avi', ('back', 'person 01')),
                                         ('videos/back_1_1m_upper.avi', None), ('S1/videos/notes.avi', None)])
def test_names_of_gestures(path, found): assert real_video.gesture_name(Path(path)) == found


def test_a_list_is_made_of_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for action in ('walk', 'run'):
        for who in ('daria', 'ido'):
            at = tmp_path/'set'/action/f'{who}_{action}.avi'
            at.parent.mkdir(parents=True, exist_ok=True)
            at.write_bytes(b'x')
    (tmp_path/'set'/'readme.txt').write_text('hello')
    table, path = real_video.make_list('weizmann', tmp_path/'set')
    read = pd.read_csv(path)
    assert path == tmp_path/'runs/real_videos/weizmann.csv' and read.equals(table.drop(columns='original')) # a column that a study does not know makes it warn
    assert read.group.value_counts().to_dict() == {'daria': 2, 'ido': 2} and set(read.label) == {'walk', 'run'}
    assert [p.resolve() for p in map((tmp_path/'runs/real_videos').joinpath, read.path)] == [tmp_path/'set'/Path(p).stem.split('_')[1]/Path(p).name for p in read.path]
    real_video.make_list('weizmann', tmp_path/'set') # again
    (tmp_path/'set'/'ido_run.mp4').write_bytes(b'x')
    with pytest.raises(StudyError, match='ido_run is there twice'): real_video.make_list('weizmann', tmp_path/'set')
    (tmp_path/'other').mkdir()
    with pytest.raises(StudyError, match='none of its 0 videos is named like those of ut_interaction'): real_video.make_list('ut_interaction', tmp_path/'other')
    with pytest.raises(StudyError, match='is not a folder'): real_video.make_list('weizmann', tmp_path/'nowhere')


def test_letterboxed_copies_have_one_size_and_keep_the_shape_of_the_picture(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path/'set').mkdir()
    uploads.write_video(tmp_path/'set'/'0_1_4.mp4', dancers.render_clip('wave', 0, 1))
    table, _ = real_video.make_list('ut_interaction', tmp_path/'set')
    with av.open(str(tmp_path/'runs/real_videos'/table.path[0])) as box:
        frame = next(box.decode(video=0)).to_ndarray(format='rgb24')
    assert frame.shape == (192, 192, 3)
    lit = (frame.max(-1) > 40).any(1)
    original = real_video.shapes(table.original)[0]
    assert abs(lit.sum()/192 - original[1]/original[0]) < .05 # as high, against its width, as the original
    with pytest.raises(StudyError, match='cannot be read'): real_video.letterbox(__file__, tmp_path/'x.mp4')
