"""The reason of a failed start, from logs as Triton writes them."""

from __future__ import annotations

from pathlib import Path

from server.failure_reason import failure_reason

HARMLESS = 'E1128 00:52:59.536905 20366 server.cc:241] "CudaDriverHelper has not been initialized."\n'
LOADING = 'I1128 00:52:59.558977 20366 model_lifecycle.cc:472] "loading: prompt:1"\n'
UNHEALTHY = (
    "E1128 00:57:14.079509 30088 x.cc:692] \"ERROR: Failed to create instance: Stub process 'p' is not healthy.\"\n"
)
LOSS = "the process of model p ended while it loaded"


def test_reason_of_a_failed_start_is_read_from_the_log(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text(
        "E1123 06:48:40.606384 156 model_lifecycle.cc:642] \"failed to load 'prompt' version 1: Internal: "
        'EngineError: tokenizer.json is missing\n\nAt:\n  model.py(20): initialize\n"\n'
        "error: creating server: Internal - failed to load all models\n"
    )
    assert failure_reason(log) == "model prompt did not load: Internal: EngineError: tokenizer.json is missing"
    line = "E1123 06:48:40.606384 156 x.cc:642] \"failed to load '{}' version 1: Internal: EngineError: {}\"\n"
    trace = r"\n\nAt:\n  /path/loading.py(158): _device\n"
    failures = (("a", "no GPU" + trace), ("b", "no GPU" + trace), ("a", "no GPU" + trace), ("c", "no file" + trace))
    log.write_text("".join(line.format(*failure) for failure in failures))
    both = "models a, b did not load: Internal: EngineError: no GPU"
    assert failure_reason(log) == f"{both}; model c did not load: Internal: EngineError: no file"
    log.write_text('E1123 06:48:40.606384 156 main.cc:9] "failed to start"\nerror: last words\n')
    assert failure_reason(log) == "failed to start"
    log.write_text("tritonserver: error while loading shared libraries: libx.so\n\n")
    assert "libx.so" in failure_reason(log)
    log.write_text("")
    assert failure_reason(log) == "it wrote no log"


def test_what_every_log_has_is_no_reason(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text(HARMLESS + LOADING + "+---+\n| Model | Version |\n")
    assert failure_reason(log) == "its log names no reason"
    assert failure_reason(log, loss=LOSS) == f"{LOSS}: its log names no reason"


def test_the_last_words_of_a_model_process_say_more_than_triton_does_of_it(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text(HARMLESS + LOADING + "stub: error while loading  libpython3.11.so.1.0\n" + LOADING + UNHEALTHY)
    assert failure_reason(log, loss=LOSS) == f"{LOSS}: stub: error while loading libpython3.11.so.1.0"
    log.write_text(HARMLESS + UNHEALTHY)
    assert failure_reason(log, loss=LOSS).startswith(f"{LOSS}: ERROR: Failed to create instance: Stub process 'p'")


def test_a_model_that_names_its_reason_says_more_than_the_loss_of_its_process(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text(
        LOADING + "E1123 06:48:40.6 1 x.cc:6] \"failed to load 'a' version 1: Internal: no file\"\n" + UNHEALTHY
    )
    assert failure_reason(log, loss=LOSS) == "model a did not load: Internal: no file"


def test_what_an_earlier_server_wrote_is_not_read(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("error: earlier\n")
    begin = log.stat().st_size
    assert failure_reason(log, begin) == "it wrote no log"
    log.write_text("error: earlier\nerror: now\n")
    assert failure_reason(log, begin) == "error: now"


def test_a_process_that_ended_is_named_also_when_triton_was_first_to_end(tmp_path: Path) -> None:
    log = tmp_path / "log"
    gone = "version 1: Internal: Stub process 'speech_lm_0_0' is not healthy."
    log.write_text(
        HARMLESS
        + "last words\n"
        + f"E1128 22:36:48.674691 18252 model_lifecycle.cc:642] \"failed to load 'speech_lm' {gone}\"\n"
        + "E1128 22:36:48.751932 18252 x.cc:703] \"Invalid argument: ensemble 'vita_audio' depends on 'speech_lm'\"\n"
        + "error: creating server: Internal - failed to load all models\n"
    )
    told = "the process of model speech_lm ended while it loaded: last words"
    assert failure_reason(log) == failure_reason(log, loss="the process of model prompt ended while it loaded") == told
