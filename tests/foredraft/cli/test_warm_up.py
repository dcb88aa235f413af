"""foredraft warm-up."""


def test_it_says_what_it_compiled_and_where_it_is_kept(command, tiny_model_path):
    code, _, err = command("warm-up", "--target", tiny_model_path, "--drafter", "none", "--drafter", "lookup")
    assert code == 0 and "kernels compiled in" in err and "kept in" in err
