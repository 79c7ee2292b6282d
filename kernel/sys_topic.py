"""Handlers of publish and subscribe, and how ids flow from a feed into its context."""

import logging
from array import array

from kernel import quota
from kernel.context import Context
from kernel.grant import require
from kernel.handler import Caller, Done
from kernel.ledger import charge
from kernel.mail import mail_of
from kernel.port import Item, require_size
from kernel.sys_ctx import prefill
from kernel.sys_infer import check_ids, check_room
from kernel.sys_port import drop_subscription, serve
from kernel.system import System
from kernel.task import Task
from kernel.topic import Feed, Subscription, Topic, ids_size, size_of
from syscalls.abi import Access, Full, Nothing, Publish, PublishResult, Subscribe
from syscalls.errors import EEXIST, EINVAL, ENOENT, EPIPE, KernelError

MAX_DEPTH = 1024
"""Messages that may wait for one subscription of a task."""

log = logging.getLogger(__name__)


def sys_subscribe(k: System, caller: Caller, args: Subscribe) -> Done:
    """Let a topic's messages wait for the caller, or become part of a context of its."""
    known = [full.value for full in Full]
    if args.full not in known:
        raise EINVAL(f"a full subscription cannot {args.full}; it can {', '.join(known)}")
    if args.ctx is not None:
        return _subscribe_ctx(k, caller.task, args, k.context(caller.task, args.ctx))
    if args.depth > MAX_DEPTH:
        raise EINVAL(f"a subscription holds up to {MAX_DEPTH} messages, not {args.depth}")
    mail = mail_of(caller.task)
    there = mail.subscriptions.get(args.topic)
    if not args.depth:
        if there is None:
            raise ENOENT(f"task {caller.task.pid} has not subscribed to topic {args.topic}")
        drop_subscription(k, there, EPIPE(f"the subscription to topic {args.topic} was ended"))
    elif there is not None:
        raise EEXIST(f"task {caller.task.pid} has subscribed to topic {args.topic} already")
    else:
        one = Subscription(args.topic, caller.task, args.depth, Full(args.full))
        k.topics.add(one)
        mail.subscriptions[args.topic] = one
    return Done(Nothing())


def _subscribe_ctx(k: System, task: Task, args: Subscribe, ctx: Context) -> Done:
    there: Feed | None = ctx.feed
    if not args.depth:
        if there is None or there.topic != args.topic:
            raise ENOENT(f"topic {args.topic} does not feed context {ctx.handle}")
        k.topics.remove(there)
        ctx.feed = None
        return Done(Nothing())
    require(ctx, Access.INFER, "subscribe")
    ctx.model.require()
    if args.full != Full.REFUSE.value:
        raise EINVAL(
            f"a feed cannot {args.full}: ids of a context are in order, and none is missing",
            f"it takes {Full.REFUSE.value}: who publishes waits for it",
        )
    if there is not None:
        raise EEXIST(f"topic {there.topic} feeds context {ctx.handle} already")
    feed = Feed(args.topic, task, ctx, args.depth)
    k.topics.add(feed)
    ctx.feed = feed
    return Done(Nothing())


def sys_publish(k: System, caller: Caller, args: Publish) -> Done:
    """Send a message to all who have subscribed, or, if one of them takes none more, to nobody."""
    require_size(args.body)
    task, ids = caller.task, caller.ids
    topic = k.topics.find(task.uid, args.topic)
    if topic is None:
        return Done(PublishResult(0))
    item = Item(task.pid, task.name, args.body, ids)
    feeds = _feeds(k, topic) if ids else []
    for one in topic.subscriptions.values():
        one.require_room()
    for feed in feeds:
        _require_feed(k, feed, ids or array("i"))
    held = size_of(item) * len(topic.subscriptions)
    held += sum(ids_size(ids) for _ in feeds) if ids else 0
    k.ports.require_bytes(task.uid, held)
    subscriptions = list(topic.subscriptions.values())
    for one in subscriptions:
        dropped = one.add(item)
        k.ports.hold(task.uid, size_of(item) - (size_of(dropped) if dropped else 0))
        serve(k, one)
    for feed in feeds:
        assert ids is not None
        feed.add(ids)
        k.ports.hold(task.uid, ids_size(ids))
        flow(k, feed.ctx)
    return Done(PublishResult(len(subscriptions) + len(feeds)))


def _feeds(k: System, topic: Topic) -> list[Feed]:
    """Return the feeds of a topic that can take ids, going on with what waits for them."""
    feeds = []
    for feed in list(topic.feeds.values()):
        if feed.ctx.revoked or not feed.ctx.model.serves:
            why = "its grant was revoked" if feed.ctx.revoked else "its model was unloaded"
            who = f"context {feed.ctx.handle} of task {feed.task.pid} ({feed.task.name})"
            k.bursts.tell(log, logging.WARNING, "feed ended", f"topic {feed.topic}, {who}: {why}")
            k.topics.remove(feed)
            feed.ctx.feed = None
            continue
        flow(k, feed.ctx)
        feeds.append(feed)
    return feeds


def _require_feed(k: System, feed: Feed, ids: "array[int]") -> None:
    """Raise an error of the publisher unless a feed takes ids."""
    ctx = feed.ctx
    ctx.model.require()
    feed.require_room(len(ids))
    check_ids(ctx, ids)
    more = feed.num_waiting + len(ids)
    check_room(ctx, ctx.length + more, 0)
    quota.admit_more(k, feed.task.payer, more, ctx, ctx.length + more)


def flow(k: System, ctx: Context) -> None:
    """Let what waits for a context become part of it, if that is free, and be computed.

    What finds no room, or is over a limit, waits on, and holds the publisher back until there is.
    """
    feed: Feed | None = ctx.feed
    if feed is None or ctx.busy or ctx.revoked or not ctx.model.serves:
        return
    while feed.waiting:
        payer, count = feed.task.payer, len(feed.waiting[0])
        try:
            check_room(ctx, ctx.length + count, 0)
            quota.admit_more(k, payer, count, ctx, ctx.length + count)
        except KernelError:
            break
        ids = feed.next()
        k.ports.hold(feed.task.uid, -ids_size(ids))
        ctx.append(ids)
        charge(payer, "input_ids", count)
        ctx.last_use = k.counters.turns
    if not k.stopping:
        prefill(k, feed.task, ctx)
