"Outputs of other tools: what is read, and what is refused in a sentence."
import json
import numpy as np, pytest
from kinetics_dance.core.base import StudyError
from kinetics_dance.evaluation.other_tools import read_output


def write(path, rows):
    path.write_text(json.dumps(rows))
    return path


@pytest.mark.parametrize('rows, why', [
    ([], 'not a list'), ({'a': 1}, 'not a list'), ([{'pred_score': [.5, .5]}], 'has no gt_label'), ([{'pred_score': [.5, .5], 'gt_label': 2}], 'not from 0 to 1'),
    ([{'pred_score': [.5, .5], 'gt_label': .5}], 'one whole number'), ([{'pred_score': [1.], 'gt_label': 0}], 'shape'),
    ([{'pred_score': [.5, .5], 'gt_label': 0}, {'pred_score': [.5], 'gt_label': 0}], 'different numbers'), ([{'pred_score': [float('nan'), 1], 'gt_label': 0}], 'no numbers'),
    ([{'pred_score': 'x', 'gt_label': 0}], 'r.json')])
def test_bad_results_of_mmaction(rows, why, tmp_path):
    with pytest.raises(StudyError, match=why) as e: read_output(write(tmp_path/'r.json', rows))
    assert '\n' not in str(e.value)


def test_labels_of_mmaction_may_be_lists(tmp_path):
    p, y, names = read_output(write(tmp_path/'r.json', [dict(pred_score=[3., 1.], gt_label=[1], name='a.mp4')]))
    assert y.tolist() == [1] and names == ['a.mp4'] and abs(p.sum() - 1) < 1e-12 and p[0, 0] > .8


def test_no_pickle_is_run(tmp_path):
    "Neither a pickle nor one inside of an archive of arrays"
    class Evil:
        def __reduce__(self): return open, (str(tmp_path/'ran'), 'w')
    import pickle
    (tmp_path/'r.pkl').write_bytes(pickle.dumps(Evil()))
    with pytest.raises(StudyError, match='a pickle can run code') as e: read_output(tmp_path/'r.pkl')
    assert 'json.dump(' in str(e.value) and len(str(e.value).splitlines()) == 3
    np.savez(tmp_path/'r.npz', predictions=np.array([Evil()], dtype=object), label_ids=np.array([0]))
    with pytest.raises(StudyError, match='not arrays of numbers'): read_output(tmp_path/'r.npz')
    np.savez(tmp_path/'s.npz', predictions=np.eye(2))
    with pytest.raises(StudyError, match='has no label_ids'): read_output(tmp_path/'s.npz')
    for name in ('none.json', 'none.npz', 'x.csv'):
        with pytest.raises(StudyError): read_output(tmp_path/name)
    assert not (tmp_path/'ran').exists()
