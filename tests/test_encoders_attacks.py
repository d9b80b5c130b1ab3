"""Encoders from somebody else: what their files ask for beyond weights is refused in one line, nothing of it is run or read, and what they answer is checked before it is believed."""
import json, shutil
import numpy as np, pytest, torch
from kinetics_dance.core.base import StudyError
from kinetics_dance.loading.reader import normalise
from kinetics_dance.models.encoders import KNOWN_ENCODERS, open_encoder
from test_encoders import IMAGE, exported, film, need, refused, saved


@pytest.fixture(scope='module')
def picture(tmp_path_factory):
    "A folder that `save_pretrained` wrote"
    need('transformers')
    folder = tmp_path_factory.mktemp('picture')/'vit'
    saved(folder, *IMAGE['vit'][:5])
    return folder


def changed(picture, folder, name, change):
    "The same folder with other words in one of its files"
    shutil.copytree(picture, folder)
    said = json.loads((folder/name).read_text()) if (folder/name).exists() else {}
    (folder/name).write_text(change if isinstance(change, str) else json.dumps(said | change))
    return f'transformers:{folder}'


@pytest.mark.parametrize('name', ['evil.bin', '../vit/model.safetensors', '/etc/hostname', '.hidden.safetensors', '..', 'a\0b.safetensors'])
def test_a_list_of_weights_names_only_safetensors_beside_it(picture, tmp_path, name):
    spec = changed(picture, tmp_path/'sharded', 'model.safetensors.index.json', dict(metadata={}, weight_map={'layernorm.bias': name}))
    (tmp_path/'sharded'/'model.safetensors').rename(tmp_path/'sharded'/'other.safetensors')
    class Runs:
        def __reduce__(self): return open, (str(tmp_path/'ran'), 'w')
    torch.save(dict(x=Runs()), tmp_path/'sharded'/'evil.bin')
    refused(spec, 'model.safetensors.index.json names', '.safetensors files beside it')
    assert not (tmp_path/'ran').exists()


@pytest.mark.parametrize('change', ['[', '[]', '{"weight_map": 5}', '{"weight_map": {"a": ["b"]}}'])
def test_a_broken_list_of_weights_is_one_line(picture, tmp_path, change):
    refused(changed(picture, tmp_path/'sharded', 'model.safetensors.index.json', change), 'index.json cannot be read')


def test_weights_in_several_files_are_read(picture, tmp_path):
    import transformers
    net = transformers.AutoModel.from_pretrained(picture)
    net.save_pretrained(tmp_path/'sharded', max_shard_size='20KB')
    assert len(list((tmp_path/'sharded').glob('*.safetensors'))) > 1
    shutil.copy(picture/'preprocessor_config.json', tmp_path/'sharded')
    with torch.no_grad(): a, b = (open_encoder(f'transformers:{f}')(normalise(film(2))).values for f in (picture, tmp_path/'sharded'))
    torch.testing.assert_close(a, b)


@pytest.mark.parametrize('file, change, words', [
    ('config.json', dict(attn_implementation='somebody/kernel'), 'may be code from the hub'),
    ('config.json', dict(attn_implementation='flash_attention_2'), 'attn_implementation'),
    ('config.json', dict(quantization_config=dict(quant_method='gptq', bits=4)), 'quantised'),
    ('adapter_config.json', dict(base_model_name_or_path='/somewhere/else'), 'is an adapter'),
    ('config.json', '[]', 'its config cannot be had'), ('config.json', '{"model_type": ["vit"]}', 'its config cannot be had'),
    ('preprocessor_config.json', '[]', 'is no mapping'), ('preprocessor_config.json', '{', 'is not JSON'), ('preprocessor_config.json', '['*100_000, 'is not JSON'),
    ('preprocessor_config.json', '{}', 'image processor cannot be used'),
    ('preprocessor_config.json', dict(image_mean=[.5, .5]), 'what no clip has'), ('preprocessor_config.json', dict(image_std=[.5, 0., .5]), 'what no clip has'),
    ('preprocessor_config.json', dict(image_mean='abc'), 'cannot be used'), ('preprocessor_config.json', dict(rescale_factor=0), 'cannot be used'),
    ('preprocessor_config.json', '{"image_mean": [NaN, 0, 0], "image_std": [1, 1, 1]}', 'what no clip has')])
def test_files_that_ask_for_more_or_make_no_sense_are_one_line(picture, tmp_path, file, change, words):
    refused(changed(picture, tmp_path/'odd', file, change), words)


@pytest.mark.parametrize('spec', ['onnx:' + 'a'*5000, 'transformers:' + 'a'*5000, 'timm:resnet18=' + 'a'*5000 + '.safetensors', 'onnx:a\0b', 'transformers:a\0b', 'transformers:../..',
                                  'transformers:a/..', 'transformers:a/b/c', 'timm:..', 'timm:../../etc', 'onnx:/dev/null', 'onnx:/', 'backbone:../x', 'untrained:__class__'])
def test_names_with_tricks_are_one_line(spec, monkeypatch):
    monkeypatch.setenv('HF_HUB_OFFLINE', '1')
    need('transformers', 'timm', 'onnxruntime')
    refused(spec)


@pytest.mark.parametrize('files', ['..', ['..'], ['.'], [''], ['a/b'], ['a\\b'], [5], {'a': 1}, ['a\0']])
def test_a_model_file_lists_names_of_files(files, tmp_path):
    from kinetics_dance.models.encoder_heads import EncoderModel
    with pytest.raises(StudyError, match='files are names'): EncoderModel.saved_arguments(dict(arguments=dict(encoder='onnx:x'), encoder=dict(files=files)), tmp_path)
    with pytest.raises(StudyError, match='no mapping'): EncoderModel.saved_arguments(dict(arguments=dict(encoder='onnx:x'), encoder=[1]), tmp_path)


# ---- ONNX ----------------------------------------------------------------------------------------------------------------------------------------------------

def graph(path, shape=('m', 3, 16, 16), out=('m', 6, 2, 2), external=None, kind=1, also=(), op='Conv', **said):
    "A file made by hand: one convolution, or a node of another kind"
    need('onnx', 'onnxruntime')
    from onnx import TensorProto, helper as h, numpy_helper
    w = numpy_helper.from_array(np.ones((6, 3, 8, 8), 'f4'), 'w')
    if external:
        w = TensorProto(name='w', data_type=1, dims=[6, 3, 8, 8], data_location=TensorProto.EXTERNAL)
        for k, v in (('location', external), ('offset', '0'), ('length', str(6*3*64*4))): w.external_data.add(key=k, value=v)
    node = h.make_node('Conv', ['x', 'w'], ['y'], strides=[8, 8]) if op == 'Conv' else h.make_node(op, ['x'], ['y'], **({'to': 7} if op == 'Cast' else {}))
    inputs = [h.make_tensor_value_info('x', 1, shape), *(h.make_tensor_value_info(a, 1, ['m']) for a in also)]
    g = h.make_graph([node], 'g', inputs, [h.make_tensor_value_info('y', kind, out)], [w])
    m = h.make_model(g, opset_imports=[h.make_opsetid('', 17)], ir_version=9)
    for k, v in said.items(): m.metadata_props.add(key=k, value=v)
    path.write_bytes(m.SerializeToString())
    return f'onnx:{path}'


@pytest.mark.parametrize('place', ['weights.bin', './weights.bin', '../here/weights.bin'])
def test_an_onnx_file_reads_no_other_file(place, tmp_path, monkeypatch):
    "Neither beside it nor in the working folder: what it says would not follow from the file, whose digest names it"
    here = tmp_path/'here'
    here.mkdir()
    np.ones(6*3*64, 'f4').tofile(here/'weights.bin')
    monkeypatch.chdir(here)
    refused(graph(here/'x.onnx', external=place), 'its weights are in another file', 'external_data=False')


@pytest.mark.parametrize('change, words', [
    (dict(shape=(4, 3, 16, 16), out=(4, 6, 2, 2)), 'takes 4 at a time'), (dict(also=['z']), 'one input of floats'), (dict(shape=('m', 1, 16, 16)), 'one input of floats'),
    (dict(shape=('m', 3, 16, 16), out=('m', 3, 16, 16), op='Cast', kind=7), 'it should be floats'),
    (dict(mean='abc'), "mean: 'abc'"), (dict(mean='0.5,0.5'), "mean: '0.5,0.5'"), (dict(std='0,1,1'), 'what no clip has'), (dict(std='nan,1,1'), "std: 'nan,1,1'"),
    (dict(time_steps='inf'), "time_steps: 'inf'"), (dict(time_steps='-2'), 'time_steps: -2'), (dict(time_steps='1.5'), 'time_steps: 1.5'), (dict(time_steps='x'), "time_steps: 'x'")])
def test_an_onnx_file_that_makes_no_sense_is_one_line(tmp_path, change, words):
    refused(graph(tmp_path/'x.onnx', **change), words)


def test_an_onnx_file_that_answers_otherwise_is_one_line(tmp_path):
    x = normalise(film(5, 16))
    class Halves(torch.nn.Module):
        def forward(self, x): return x.mean((3, 4)).unflatten(1, (3, 1)).flatten(2).transpose(1, 2)
    exported(tmp_path/'clips.onnx', Halves(), torch.rand(2, 3, 5, 16, 16), time_steps='4')
    with pytest.raises(StudyError, match='which is not what the file says') as e: open_encoder(f'onnx:{tmp_path/"clips.onnx"}')(x)
    assert '\n' not in str(e.value)


def test_a_session_that_fails_or_answers_otherwise_is_one_line(tmp_path):
    ours = open_encoder(graph(tmp_path/'x.onnx'))
    x = normalise(film(2, 16))
    assert ours(x).values.shape == (2, 2*4, 6)
    class Session:
        def __init__(self, answer): self.answer = answer
        def run(self, names, feeds):
            if isinstance(self.answer, Exception): raise self.answer
            return [self.answer]
    for answer in (np.zeros((3, 6, 2, 2), 'f4'), np.zeros((4, 5, 2, 2), 'f4'), np.zeros((4,), 'f4'), np.zeros((4, 0, 6), 'f4'), RuntimeError('no\nmemory')):
        ours.session = Session(answer)
        with pytest.raises(StudyError) as e: ours(x)
        assert '\n' not in str(e.value)


# ---- what is said of them ------------------------------------------------------------------------------------------------------------------------------------

def test_licences_are_those_of_timm():
    need('timm')
    import timm
    plain = lambda s: s.lower().removesuffix('-license')
    for spec, h in KNOWN_ENCODERS.items():
        assert h.checked, spec
        if not spec.startswith('timm:'): continue
        said = timm.get_pretrained_cfg(spec.removeprefix('timm:')).license
        assert plain(said) == plain(h.licence) if h.checked == 'timm' else said != h.licence.lower() and 'timm has' in h.checked, spec


def test_sizes_and_time_steps_are_those_of_the_configs():
    "Frames, size and tubelet of the video networks: the defaults of their configs are those of the published networks"
    need('transformers')
    import transformers
    for name, config in (('videomae-base', 'VideoMAEConfig'), ('vjepa2-vitl-fpc64-256', 'VJEPA2Config'), ('timesformer-base-finetuned-k400', 'TimesformerConfig'),
                         ('vivit-b-16x2-kinetics400', 'VivitConfig')):
        h = next(h for k, h in KNOWN_ENCODERS.items() if k.endswith(name))
        c = getattr(transformers, config)()
        size, frames = getattr(c, 'crop_size', None) or c.image_size, getattr(c, 'frames_per_clip', None) or c.num_frames
        assert (size, frames) == (h.size, int(h.frames.split(',')[0])), name
        tubelet = getattr(c, 'tubelet_size', 1)
        assert (tubelet if isinstance(tubelet, int) else tubelet[0]) == (1 if 'timesformer' in name else 2), name
