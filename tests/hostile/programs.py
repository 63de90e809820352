"""Every place where a user's object enters a tree: the outcome must be that of a plain object."""

from __future__ import annotations

from contextlib import asynccontextmanager

import trio

from supervise import (
    Backoff,
    Child,
    Decider,
    Escalate,
    Pool,
    Resume,
    Rule,
    Stop,
    Supervisor,
    current_child,
)
from supervise.testing import idle


def once(make):
    """Raise what `make` makes in the first incarnation, and idle in the later ones."""

    async def body(*_):
        await trio.sleep(1)
        if current_child().incarnation == 1:
            raise make()
        await trio.sleep_forever()

    return body


def a_body(make):
    return Supervisor("app", [Child("a", once(make)), Child("b", idle)])


def a_body_with_a_resource(make):
    return Supervisor("app", [Child("a", once(make), resource=nothing), Child("b", idle)])


def a_body_under_one_for_all(make):
    return Supervisor(
        "app", [Child("a", once(make), resource=nothing), Child("b", idle)], strategy="one_for_all"
    )


def a_body_with_a_message(make):
    async def body(inbox):
        message = await inbox.receive()
        if current_child().incarnation == 1:
            raise make()
        message.reply()
        await trio.sleep_forever()

    return Supervisor("app", [Child("a", body, mailbox=4), Child("b", caller)])


async def caller():
    """Calls until it is answered; a call that is lost raises."""
    tree = current_child().tree
    while True:
        try:
            await tree["app/a"].call(1)
        except Exception:
            continue
        await trio.sleep_forever()


def a_body_that_escalates(make):
    inner = Supervisor("inner", [Child("a", once(make))], decider=Decider(default=Escalate))
    return Supervisor("app", [inner, Child("b", idle)])


def a_body_that_fails_the_tree(make):
    return Supervisor("app", [Child("a", once(make))], decider=Decider(default=Escalate))


def a_body_that_is_stopped_for_it(make):
    return Supervisor(
        "app", [Child("a", once(make), mailbox=1), Child("b", late)], decider=Decider(default=Stop)
    )


async def late():
    await trio.sleep(2)
    try:
        await current_child().tree["app/a"].call(1)
    except Exception:
        await trio.sleep_forever()


def a_body_that_resumes(make):
    fails = [True]

    async def body(_):
        await trio.sleep(1)
        if fails.pop() if fails else False:
            raise make()
        await trio.sleep_forever()

    return Supervisor("app", [Child("a", body, resource=nothing)], decider=Decider(default=Resume))


def a_start(make):
    async def body(task_status):
        raise make()

    return Supervisor("app", [Child("b", idle), Child("a", body)])


def a_later_start(make):
    async def body(task_status):
        if current_child().incarnation == 2:
            raise make()
        task_status.started()
        await trio.sleep(1)
        if current_child().incarnation == 1:
            raise ValueError
        await trio.sleep_forever()

    return Supervisor("app", [Child("b", idle), Child("a", body, backoff=Backoff(initial=1, jitter=0))])


def an_entry(make):
    @asynccontextmanager
    async def resource():
        if current_child().incarnation == 2:
            raise make()
        yield

    return Supervisor("app", [Child("a", once(ValueError), resource=resource)])


def an_exit(make):
    @asynccontextmanager
    async def resource():
        try:
            yield
        finally:
            raise make()

    return Supervisor("app", [Child("a", once(ValueError), resource=resource)])


def a_clean_up(make):
    async def body():
        try:
            await trio.sleep_forever()
        finally:
            raise make()

    return Supervisor("app", [Child("a", body), Child("b", idle)])


def an_init(make):
    def init():
        raise make()

    return Supervisor("app", [Child("b", idle), Supervisor("inner", [Child("a", idle)], init=init)])


def an_injection(make):
    async def injects():
        await trio.sleep(1)
        current_child().tree["app/a"].inject(make())
        await trio.sleep(1)
        current_child().tree["app/a"].inject(ValueError("again"))
        await trio.sleep_forever()

    return Supervisor("app", [Child("a", idle), Child("b", injects)])


def a_predicate(make):
    def when(_):
        raise make()

    decider = Decider(rules=[Rule(ValueError, "x", when=when)])
    return Supervisor("app", [Child("a", once(ValueError))], decider=decider)


def a_member_that_fails(make):
    pool = Pool("pool", Child("m", once(make), restart="transient"))

    async def adds():
        for _ in range(3):
            await current_child().tree["app/pool"].add()
        await trio.sleep_forever()

    return Supervisor("app", [pool, Child("adds", adds)])


def an_answer(make):
    async def body(inbox):
        async for message in inbox:
            message.fail(make())

    async def asks():
        try:
            await current_child().tree["app/a"].call(1)
        except Exception:
            await trio.sleep_forever()

    return Supervisor("app", [Child("a", body, mailbox=1), Child("b", asks)])


def a_left_callback(make):
    async def body(inbox):
        def callback():
            raise make()

        async for message in inbox:
            message.on_left(callback)
            await trio.sleep_forever()

    async def asks():
        with trio.move_on_after(1):
            await current_child().tree["app/a"].call(1)
        await trio.sleep_forever()

    return Supervisor("app", [Child("a", body, mailbox=1), Child("b", asks)])


RAISED = [
    a_body, a_body_with_a_resource, a_body_under_one_for_all, a_body_with_a_message, a_body_that_escalates,
    a_body_that_fails_the_tree, a_body_that_is_stopped_for_it, a_body_that_resumes, a_start, a_later_start, an_entry,
    an_exit, a_clean_up, an_init, an_injection, a_predicate, a_member_that_fails, an_answer, a_left_callback,
]  # fmt: skip
"""Trees into which a user's exception comes, each in another place."""


def a_return(make):
    async def body():
        await trio.sleep(1)
        return make() if current_child().incarnation == 1 else await trio.sleep_forever()

    return Supervisor("app", [Child("a", body)])


def a_return_of_a_transient_child(make):
    async def body(_):
        await trio.sleep(1)
        return make()

    return Supervisor("app", [Child("a", body, resource=nothing, restart="transient"), Child("b", idle)])


def a_return_before_it_was_ready(make):
    async def body(task_status):
        if current_child().incarnation == 2:
            return make()
        task_status.started()
        await trio.sleep(1)
        raise ValueError

    return Supervisor("app", [Child("a", body, backoff=Backoff(initial=1, jitter=0))], limit=None)


def a_ready_value(make):
    async def body(task_status):
        task_status.started(make())
        await trio.sleep_forever()

    async def asks():
        await current_child().tree["app/a"].ready()
        async with current_child().tree["app/a"].lease():
            await trio.sleep_forever()

    return Supervisor("app", [Child("a", body), Child("b", asks)])


def a_resource(make):
    @asynccontextmanager
    async def resource():
        yield make()

    return Supervisor("app", [Child("a", once(ValueError), resource=resource)])


def a_message(make):
    async def body(inbox):
        async for message in inbox:
            if current_child().incarnation == 1:
                raise ValueError
            message.reply(message.value)

    async def asks():
        ref = current_child().tree["app/a"]
        await ref.call(make(), on_loss="requeue")
        await ref.send(make())
        ref.send_nowait(make())
        await trio.sleep_forever()

    return Supervisor("app", [Child("a", body, mailbox=4), Child("b", asks)])


def a_stream(make):
    async def body(inbox):
        async for message in inbox:
            message.memo = make()
            for _ in range(3):
                await message.send(make())
            message.reply(make())

    async def asks():
        async with current_child().tree["app/a"].stream(make(), buffer=2) as items:
            async for _ in items:
                pass
        await trio.sleep_forever()

    return Supervisor("app", [Child("a", body, mailbox=4), Child("b", asks)])


def an_argument(make):
    async def body(_):
        await trio.sleep(1)
        raise ValueError

    pool = Pool("pool", Child("m", body, args=(), restart="temporary"))

    async def adds():
        await current_child().tree["app/pool"].add(make())
        await trio.sleep_forever()

    return Supervisor(
        "app", [pool, Child("adds", adds), Child("b", body, args=(make(),), restart="transient")], limit=None
    )


def an_init_value(make):
    return Supervisor("app", [Supervisor("inner", [Child("a", idle)], init=make)])


RETURNED = [
    a_return, a_return_of_a_transient_child, a_return_before_it_was_ready, a_ready_value, a_resource, a_message, a_stream,
    an_argument, an_init_value,
]  # fmt: skip
"""Trees into which a user's value comes, each in another place."""


@asynccontextmanager
async def nothing():
    yield
