"""The decisions of a pool: which caller gets which connection, and when one is opened, checked or closed. Private.

Theory of operation
-------------------
The core is *sans-IO*. A shell (threads or tasks) reports what has happened and when (``now`` is an argument), and the
core answers what to do. It imports no clock, lock, thread, event loop, socket or logger. Rules:

1. The shell holds its lock around every call. A call takes O(1), except for sweeps and pool-wide commands.
2. A method records an event. After each step, ``Core.settle(now)`` acts on the state. It alone serves requests, opens
   connections, keeps ``min_size``, closes surplus connections and closes some for other pools of a budget. Its answers
   are the ``outcome`` of requests and the list ``effects`` (open, close, wake a request, call listeners). The shell
   performs the effects after it has released the lock.
3. A :class:`~.slots.Slot` changes its state only along the edges of ``slots.TRANSITIONS``.
4. ONE-END: a :class:`~.queue.Request` ends exactly once: served (a slot), failed (an error) or gone. A connection that
   was assigned to a request that is gone is returned.
5. PERMIT-UNTIL-CLOSED: the number of permits taken *is* ``len(core.all_slots)``. A separate counter could drift.
6. KeyboardInterrupt may end a step between any two bytecodes. The shell then calls ``repair.repair``. A slot that the
   interrupted thread was working on is found by ``repair.audit`` in the next sweep: the register of slots holds weak
   references, so the interpreter reports a slot that no code refers to.
7. ``invariants.check(core)`` passes after each ``settle()``: no request waits while capacity is free, and ``min_size``
   is kept.

One shortcut exists. The shells may take an idle slot from an endpoint's ``idle`` deque, and put it back, without the
lock: operations of deques and dicts are atomic. They do so only for an exclusive connection that needs no check
(``now < slot.fresh_until``). Two rules make this safe. ONE-OWNER: only the thread that has popped a slot writes its
fields. ENQUEUE-THEN-LOOK: a request enters the queue before it looks at the idle slots a last time, and a thread looks
for requests after it has put a slot back. So at least one of the two sees the other.
"""
