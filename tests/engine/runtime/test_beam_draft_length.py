"""The draft length of beams follows costs and savings, for each number of beams by itself."""

from foredraft.engine.runtime.beam_draft_length import PROBE_EVERY, BeamDraftLength


def passes(policy, count, beams, share, fixed=1.0, each=0.0):
    """K of `count` passes of one search. Of the drafted positions the first `share` K save a pass."""
    chosen = []
    for _ in range(count):
        K = policy.choose(8, [beams])
        saved = int(share * K)
        policy.learn(beams * (K + 1), fixed + each * beams * (K + 1), [(beams, min(K, saved + 1), saved)])
        chosen.append(K)
    return chosen


def test_free_drafts_are_as_long_as_allowed():
    assert passes(BeamDraftLength(), 100, 4, share=1.0)[-20:] == [8] * 20


def test_useless_drafts_end_but_for_a_probe():
    chosen = passes(BeamDraftLength(), 400, 4, share=0.0, each=0.2)
    assert sum(chosen[100:]) == sum(K > 0 for K in chosen[100:]) <= 300 // PROBE_EVERY + 1
    assert sum(chosen[100:]) >= 300 // PROBE_EVERY - 1


def test_searches_with_other_numbers_of_beams_do_not_matter():
    policy = BeamDraftLength()
    passes(policy, 60, 8, share=0.0, each=0.02)
    passes(policy, 200, 2, share=1.0, each=0.02)
    assert sum(passes(policy, 40, 8, share=0.0, each=0.02)) <= 1
    assert min(passes(policy, 40, 2, share=1.0, each=0.02)) > 0


def test_no_drafts_where_none_are_allowed():
    policy = BeamDraftLength()
    assert policy.choose(0, [4]) == policy.choose(5, []) == 0
