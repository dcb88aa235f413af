"""generate with tensors: as transformers' own, padded as transformers pads, also inside Seq2SeqTrainer."""

import pytest
import torch
from peer_versions import needs_transformers
from transformers import (
    GenerationConfig,
    LogitsProcessorList,
    RepetitionPenaltyLogitsProcessor,
    T5Config,
    T5ForConditionalGeneration,
)

import foredraft
from foredraft.errors import UserError

ROWS = [[5, 9, 33, 5, 9, 40, 5, 9, 1], [7, 8, 9, 1], [50, 50, 12, 50, 50, 12, 1], [3, 1]]


def padded(rows, pad=0, left=False):
    longest = max(map(len, rows))
    filled = [[pad] * (longest - len(row)) + row if left else row + [pad] * (longest - len(row)) for row in rows]
    return torch.tensor(filled)


@pytest.fixture
def pair():
    """A random model whose outputs vary, and ours of the same weights."""
    torch.manual_seed(1)
    config = T5Config(vocab_size=100, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, feed_forward_proj="gated-gelu",
                      decoder_start_token_id=0, initializer_factor=1.5, tie_word_embeddings=False)
    reference = T5ForConditionalGeneration(config).eval()
    with torch.no_grad():
        reference.get_output_embeddings().weight.mul_(4)
    return reference, foredraft.from_transformers(reference)


@pytest.mark.parametrize("arguments", [
    {}, {"max_new_tokens": 30}, {"max_length": 12, "no_repeat_ngram_size": 2},
    {"generation_config": GenerationConfig(max_new_tokens=25, repetition_penalty=1.4, eos_token_id=1, pad_token_id=0,
                                           decoder_start_token_id=0)},
    {"logits_processor": LogitsProcessorList([RepetitionPenaltyLogitsProcessor(1.5)]), "max_new_tokens": 20},
    {"max_new_tokens": 30, "eos_token_id": [1, 5, 17]}, {"max_new_tokens": 9, "pad_token_id": 3}])
def test_sequences_are_transformers(pair, arguments):
    reference, model = pair
    ids = padded(ROWS)
    mask = (ids != 0).long()
    with torch.no_grad():
        wanted = reference.generate(input_ids=ids, attention_mask=mask, **arguments)
    assert torch.equal(model.generate(input_ids=ids, attention_mask=mask, **arguments), wanted)
    assert torch.equal(model.generate(ids, **arguments), wanted) or arguments.get("pad_token_id")
    # the sources are those without padding, so padding on the left is the same
    left = padded(ROWS, left=True)
    assert torch.equal(model.generate(input_ids=left, attention_mask=(left != 0).long(), **arguments), wanted)


def test_scores_and_logits_are_transformers(pair):
    reference, model = pair
    arguments = dict(max_new_tokens=15, repetition_penalty=1.3, return_dict_in_generate=True, output_scores=True,
                     output_logits=True, eos_token_id=None, attention_mask=(padded(ROWS) != 0).long())
    reference.generation_config.eos_token_id = None
    with torch.no_grad():
        wanted = reference.generate(padded(ROWS), **arguments)
    model = foredraft.from_transformers(reference)
    found = model.generate(padded(ROWS), **arguments)
    assert torch.equal(found.sequences, wanted.sequences)
    for name in ("scores", "logits"):
        assert len(found[name]) == len(wanted[name]) == 15
        for ours, theirs in zip(found[name], wanted[name], strict=True):
            assert torch.allclose(ours, theirs, atol=1e-4)
    ours, theirs = (reference.compute_transition_scores(out.sequences, out.scores, normalize_logits=True)
                    for out in (found, wanted))
    assert torch.allclose(ours, theirs, atol=1e-4)


def test_several_samples_of_an_input_are_repeated_by_pytorchs_seed(pair):
    _, model = pair
    outputs = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        outputs.append(model.generate(padded(ROWS), do_sample=True, temperature=9.0,
                                      num_return_sequences=3, max_new_tokens=12))
    assert outputs[0].shape[0] == 12 and torch.equal(outputs[0], outputs[1])
    assert outputs[0].shape != outputs[2].shape or not torch.equal(outputs[0], outputs[2])
    assert len({tuple(row.tolist()) for row in outputs[0][:3]}) > 1


@pytest.mark.parametrize("arguments", [
    {"generation_config": GenerationConfig(decoder_start_token_id=9, max_new_tokens=9)},
    {"decoder_start_token_id": 9, "max_new_tokens": 9},
    {"decoder_input_ids": torch.zeros(4, 1, dtype=torch.int64), "max_new_tokens": 9}])
def test_the_start_token_is_the_one_asked_for(pair, arguments):
    reference, model = pair
    with torch.no_grad():
        wanted = reference.generate(padded(ROWS), attention_mask=(padded(ROWS) != 0).long(), **arguments)
    assert torch.equal(model.generate(padded(ROWS), **arguments), wanted)


def test_the_start_token_may_be_the_token_of_the_beginning(pair):
    reference, _ = pair
    reference.generation_config = GenerationConfig(bos_token_id=7, eos_token_id=1, pad_token_id=0, max_new_tokens=9)
    with torch.no_grad():
        wanted = reference.generate(padded(ROWS), attention_mask=(padded(ROWS) != 0).long())
    assert torch.equal(foredraft.from_transformers(reference).generate(padded(ROWS)), wanted) and int(wanted[0, 0]) == 7


def test_beams_as_transformers(pair):
    reference, model = pair
    arguments = dict(num_beams=3, num_return_sequences=2, max_new_tokens=12, no_repeat_ngram_size=2, output_scores=True,
                     output_logits=True, return_dict_in_generate=True)
    with torch.no_grad():
        wanted = reference.generate(torch.tensor(ROWS[:1]), **arguments)
    found = model.generate(torch.tensor(ROWS[:1]), **arguments)
    assert type(found) is type(wanted)
    assert torch.equal(found.sequences, wanted.sequences) and torch.equal(found.beam_indices, wanted.beam_indices)
    assert torch.allclose(found.sequences_scores, wanted.sequences_scores, atol=1e-4)
    for name in ("scores", "logits"):
        assert torch.allclose(torch.stack(found[name]), torch.stack(wanted[name]), atol=1e-3)
    both = model.generate(padded(ROWS[:2]), **arguments)
    assert both.sequences.shape[0] == both.sequences_scores.shape[0] == 4 and both.scores[0].shape == (6, 100)
    assert int(both.beam_indices[2:].max()) > 2


def test_greedy_decoding_leaves_pytorchs_generator_alone(pair):
    _, model = pair
    torch.manual_seed(3)
    wanted = torch.rand(3)
    torch.manual_seed(3)
    model.generate(padded(ROWS), max_new_tokens=4)
    assert torch.equal(torch.rand(3), wanted)


def test_a_prefix_function_is_told_the_input_of_several_samples(pair):
    needs_transformers("5.23")
    reference, model = pair
    arguments = dict(do_sample=True, top_k=1, num_return_sequences=2, max_new_tokens=5,
                     attention_mask=(padded(ROWS) != 0).long(),
                     prefix_allowed_tokens_fn=lambda index, ids: [1, 3 + index, 7 + index, 9])
    with torch.no_grad():
        wanted = reference.generate(padded(ROWS), **arguments)
    assert torch.equal(model.generate(padded(ROWS), **arguments), wanted)


def test_stop_strings_with_a_tokenizer_as_an_argument(tiny_model_path):
    from transformers import AutoModelForSeq2SeqLM, PreTrainedTokenizerFast

    reference = AutoModelForSeq2SeqLM.from_pretrained(tiny_model_path, dtype=torch.float32).eval()
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(tiny_model_path / "tokenizer.json"), eos_token="</s>")
    free = foredraft.from_transformers(reference, tokenizer).generate(ROWS, max_new_tokens=12)
    word = free.texts[0].split()[2]
    arguments = dict(input_ids=padded(ROWS[:1]), max_new_tokens=12, stop_strings=[word])
    found = foredraft.from_transformers(reference).generate(tokenizer=tokenizer, **arguments)
    assert found.shape[1] < 13 and tokenizer.decode(found[0], skip_special_tokens=True).endswith(word)


def test_weights_that_an_optimizer_changes_are_followed(pair):
    reference, model = pair
    before = model.generate(padded(ROWS), max_new_tokens=12)
    optimizer = torch.optim.AdamW(reference.parameters(), lr=0.05)
    ids = padded(ROWS)
    reference(input_ids=ids, labels=ids).loss.backward()
    optimizer.step()
    with torch.no_grad():
        wanted = reference.generate(ids, max_new_tokens=12)
    after = model.generate(ids, max_new_tokens=12)
    assert torch.equal(after, wanted) and (after.shape != before.shape or not torch.equal(after, before))
    for parameter in reference.parameters():
        parameter.data = parameter.data * 1.0
        parameter.data.mul_(-0.5)
    model.refresh()
    with torch.no_grad():
        assert torch.equal(model.generate(ids, max_new_tokens=12), reference.generate(ids, max_new_tokens=12))


@pytest.mark.full
def test_seq2seq_trainer_evaluates_with_it(pair, tmp_path):
    from transformers import DataCollatorForSeq2Seq, Seq2SeqTrainer, Seq2SeqTrainingArguments

    reference, model = pair

    class Tokenizer:
        padding_side, pad_token_id = "right", 0

        def pad(self, features, **_):
            ids = padded([feature["input_ids"] for feature in features])
            return {"input_ids": ids, "attention_mask": (ids != 0).long()}

    data = [{"input_ids": row, "labels": row} for row in ROWS]
    arguments = Seq2SeqTrainingArguments(tmp_path, predict_with_generate=True, per_device_eval_batch_size=2, report_to=[],
                                         generation_max_length=12, use_cpu=True)
    collator = DataCollatorForSeq2Seq(Tokenizer(), model=None)
    found = []
    for generate in (reference.generate, model.generate):
        reference.generate = generate
        trainer = Seq2SeqTrainer(reference, arguments, data_collator=collator, eval_dataset=data)
        found.append(trainer.predict(data).predictions)
    assert (found[0] == found[1]).all()


def test_lists_and_streams_work_as_with_any_model(pair, tmp_path):
    reference, model = pair
    reference.save_pretrained(tmp_path)
    wanted = foredraft.load(tmp_path).generate(ROWS, max_new_tokens=6).token_ids
    assert model.generate(ROWS, max_new_tokens=6).token_ids == wanted
    assert [result.token_ids for result in model.stream(ROWS, in_order=True, max_new_tokens=6)] == wanted
    assert model.with_drafter(None).generate(ROWS, max_new_tokens=6).token_ids == wanted


def test_bad_tensors_are_one_line(pair):
    _, model = pair
    ids = padded(ROWS)
    gap = torch.ones_like(ids)
    gap[0, 2] = 0
    for arguments, message in (
            (dict(input_ids=ids[0]), r"input_ids has shape \(9,\); give \[batch, length\]"),
            (dict(input_ids=ids, attention_mask=ids[:2]), "attention_mask has shape"),
            (dict(input_ids=ids, attention_mask=gap), "attention_mask has a gap in row 0"),
            (dict(input_ids=ids, num_return_sequences=2), "num_return_sequences is 2 in greedy decoding"),
            (dict(input_ids=ids, generation_config=5), "generation_config is of type int; give a transformers"),
            (dict(input_ids=ids, decoder_input_ids=ids), "decoder_input_ids has shape"),
            (dict(input_ids=ids, decoder_input_ids=ids[:, :1]), r"shape \(4, 1\); only the start token 0"),
            (dict(input_ids=ids, encoder_outputs=1), "there is no argument 'encoder_outputs'"),
            (dict(inputs=["w5"], attention_mask=ids), "go with input_ids as a tensor")):
        with pytest.raises(UserError, match=message):
            model.generate(**arguments)
