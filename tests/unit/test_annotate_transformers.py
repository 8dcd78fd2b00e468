"""The transformers adapter on a small stand-in with its names and call order."""

from __future__ import annotations

from pathlib import Path

import pytest
from annotate_harness import Outcome, Target

FAKE = {
    "torch/__init__.py": """
        from types import SimpleNamespace

        class Tensor:
            def __init__(self, *shape):
                self.shape = shape

        compiler = SimpleNamespace(is_compiling=lambda: False)

        class Handle:
            def __init__(self, hooks, hook):
                self.hooks, self.hook = hooks, hook
                hooks.append(hook)
            def remove(self):
                self.hooks.remove(self.hook)

        class Module:
            def __init__(self):
                self.before, self.after = [], []
            def register_forward_pre_hook(self, hook, with_kwargs=False):
                assert with_kwargs
                return Handle(self.before, hook)
            def register_forward_hook(self, hook):
                return Handle(self.after, hook)
            def __call__(self, *args, **kwargs):
                compiled = vars(self).get("_compiled_call_impl")
                return (compiled or self._call_impl)(*args, **kwargs)
            def _call_impl(self, *args, **kwargs):
                for hook in list(self.before):
                    hook(self, args, kwargs)
                output = self.forward(*args, **kwargs)
                for hook in list(self.after):
                    hook(self, args, output)
                return output
    """,
    "transformers/__init__.py": "__version__ = '5.4.3'",
    "transformers/modeling_utils.py": """
        class PreTrainedModel:
            def get_compiled_call(self, config):
                return self.forward if config else self.__call__
    """,
    "transformers/generation/utils.py": """
        from torch import Tensor
        from transformers.modeling_utils import PreTrainedModel

        class StoppingCriteriaList(list):
            def __call__(self, ids, scores):
                return any(criterion(ids) for criterion in self)

        class GenerationMixin:
            def generate(self, ids, steps=3, chunks=1, assistant=None, config=None, fail=None):
                '''Generate.'''
                done = StoppingCriteriaList()
                call = self.get_compiled_call(config)
                output = self._prefill(ids, chunks)
                for step in range(steps):
                    if step:
                        if assistant:
                            assistant.generate(ids, steps=1)
                        inputs = self.prepare_inputs_for_generation(Tensor(ids.shape[0], 1))
                        output = call(**inputs)
                    if step == fail:
                        raise KeyError("mid-way")
                    done(ids, None)
                return steps

            def _prefill(self, ids, chunks):
                for _ in range(chunks):
                    chunk = Tensor(ids.shape[0], ids.shape[1] // chunks)
                    inputs = self.prepare_inputs_for_generation(chunk)
                    output = self(**inputs)
                return output

            def prepare_inputs_for_generation(self, ids, **kwargs):
                return {"input_ids": ids}
    """,
    "models.py": """
        from torch import Module, Tensor
        from transformers.generation.utils import GenerationMixin
        from transformers.modeling_utils import PreTrainedModel

        class Model(Module, PreTrainedModel, GenerationMixin):
            def forward(self, input_ids=None, **kwargs):
                return input_ids

            def prepare_inputs_for_generation(self, ids, **kwargs):
                return super().prepare_inputs_for_generation(ids, **kwargs)
    """,
}
START = "from models import Model\nfrom torch import Tensor\nmodel = Model()\nids = Tensor(2, 12)\n"
PREPARE = "transformers.prepare_inputs( )"
TOKEN = f"{PREPARE} transformers.forward( ) transformers.sample( )"


@pytest.fixture
def target(tmp_path: Path) -> Target:
    target = Target(tmp_path)
    for name, text in FAKE.items():
        target.write(name, text)
    return target


def generated(*parts: str) -> str:
    return " ".join(["transformers.generate(", *parts, ")"])


def facts(outcome: Outcome) -> list[tuple[str | None, int | None]]:
    return [(e.category, e.payload) for e in outcome.named("transformers.forward")]


def test_generate_is_told_with_its_parts(target: Target) -> None:
    outcome = target.run(START + "print(model.generate(ids), model.before, model.after)")
    assert (outcome.stdout, outcome.stderr) == ("3 [] []\n", "")
    assert outcome.shape == generated(TOKEN, TOKEN, TOKEN)
    assert facts(outcome) == [
        ("prefill", 2 << 32 | 24),
        ("decode", 2 << 32 | 2),
        ("decode", 2 << 32 | 2),
    ]
    assert {report["engine_version"] for report in outcome.reports} == {"5.4.3"}
    assert {point for report in outcome.reports for point in report["hooked"]} == {
        "GenerationMixin._prefill",
        "GenerationMixin.generate",
        "GenerationMixin.prepare_inputs_for_generation",
        "PreTrainedModel.get_compiled_call",
        "StoppingCriteriaList.__call__",
    }


def test_nothing_is_sampled_between_the_chunks_of_a_prefill(target: Target) -> None:
    outcome = target.run(START + "model.generate(ids, steps=2, chunks=3)")
    chunk = f"{PREPARE} transformers.forward( )"
    assert outcome.shape == generated(chunk, chunk, chunk, "transformers.sample( )", TOKEN)
    assert facts(outcome) == [("prefill", 2 << 32 | 8)] * 3 + [("decode", 2 << 32 | 2)]


def test_an_assistants_forwards_are_no_steps(target: Target) -> None:
    outcome = target.run(START + "model.generate(ids, assistant=Model())")
    drafted = f"transformers.draft( ) {TOKEN}"
    assert outcome.shape == generated(TOKEN, drafted, drafted)
    assert len(facts(outcome)) == 3


def test_a_models_own_generate_may_call_the_inherited_one_repeatedly(target: Target) -> None:
    outcome = target.run(
        START
        + """
class Long(Model):
    def generate(self, ids):
        return [super(Long, self).generate(ids, steps=1) for _ in range(2)]
print(Long().generate(ids))
"""
    )
    assert outcome.stdout == "[1, 1]\n"
    assert outcome.shape == generated(generated(TOKEN), generated(TOKEN))
    assert [phase for phase, _ in facts(outcome)] == ["prefill", "prefill"]


def test_an_exception_closes_what_is_open(target: Target) -> None:
    outcome = target.run(
        START
        + """
try:
    model.generate(ids, fail=1)
except KeyError as error:
    print(error, model.before, model.after)
model.generate(ids, steps=1)
"""
    )
    assert outcome.stdout == "'mid-way' [] []\n"
    assert outcome.shape == f"{generated(TOKEN, TOKEN)} {generated(TOKEN)}"


def test_compiled_calls_are_seen_from_outside(target: Target) -> None:
    # GIVEN a compiled call that runs no module hooks, and a compiled module
    outcome = target.run(
        START
        + """
model.generate(ids, steps=2, config="fast")
compiled = model._compiled_call_impl = lambda **kwargs: model.forward(**kwargs)
model.generate(ids, steps=2)
print(model._compiled_call_impl is compiled)
"""
    )
    assert (outcome.stdout, outcome.stderr) == ("True\n", "")
    assert outcome.shape == f"{generated(TOKEN, TOKEN)} {generated(TOKEN, TOKEN)}"
    assert [phase for phase, _ in facts(outcome)] == ["prefill", "decode"] * 2


def test_threads_share_a_model_but_no_ranges(target: Target) -> None:
    # GIVEN two threads, the second generating while the first is in a forward
    outcome = target.run(
        START
        + """
import threading

class Meeting(Model):
    def __init__(self):
        super().__init__()
        self.inside, self.other_done = threading.Event(), threading.Event()
    def forward(self, input_ids=None, **kwargs):
        if threading.current_thread() is not threading.main_thread():
            self.inside.set()
            assert self.other_done.wait(30)
        return input_ids

model = Meeting()
first = threading.Thread(target=model.generate, args=(ids, 1))
first.start()
assert model.inside.wait(30)
model.generate(ids, steps=1)
model.other_done.set()
first.join()
print(model.before, model.after)
"""
    )
    assert (outcome.stdout, outcome.stderr) == ("[] []\n", "")
    opened = f"transformers.generate( {PREPARE} transformers.forward("
    closed = ") transformers.sample( ) )"
    assert outcome.shape == f"{opened} {generated(TOKEN)} {closed}"


def test_a_plain_forward_is_not_annotated(target: Target) -> None:
    outcome = target.run(START + "model(input_ids=ids)\nmodel.prepare_inputs_for_generation(ids)")
    assert (outcome.status, outcome.events) == (0, [])


def test_what_has_no_module_hooks_still_generates(target: Target) -> None:
    outcome = target.run(
        START
        + """
class Odd(Model):
    register_forward_hook = None
odd = Odd()
print(odd.generate(ids, steps=1), odd.before)
"""
    )
    assert (outcome.stdout, outcome.stderr) == ("1 []\n", "")


@pytest.mark.parametrize(
    "inputs",
    [
        "{'inputs_embeds': Tensor(2, 12, 64)}",
        "{'decoder_input_ids': Tensor(2, 12), 'input_ids': Tensor(9, 9)}",
    ],
)
def test_size_is_taken_from_what_the_decoder_gets(target: Target, inputs: str) -> None:
    outcome = target.run(
        START
        + f"""
class Other(Model):
    def prepare_inputs_for_generation(self, ids):
        return {inputs}
Other().generate(ids, steps=1)
"""
    )
    assert facts(outcome) == [("prefill", 2 << 32 | 24)]


def test_odd_inputs_are_counted_as_none(target: Target) -> None:
    outcome = target.run(
        START
        + """
class Odd(Model):
    def prepare_inputs_for_generation(self, ids):
        return {"input_ids": Tensor(5)}
print(Odd().generate(ids, steps=1))
"""
    )
    assert outcome.stdout == "1\n"
    assert facts(outcome) == [("prefill", 0)]
