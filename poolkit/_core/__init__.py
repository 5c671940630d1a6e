"""The decisions: who gets which connection, when one is opened, checked, closed. Private.

Theory of operation
-------------------
The core is *sans-IO*: a shell (threads or tasks) tells it what happened and when (``now`` is an argument), and
the core answers what to do. It imports no clock, lock, thread, loop, socket or log. Rules:

1. Every method is called with the shell's lock held and takes O(1), except sweeps and pool-wide commands.
2. A method notes what has happened. After each, ``Core.settle(now)`` does what the state asks for: it alone serves
   requests, opens connections, keeps ``min_size``, closes surplus ones and gives way to other pools. Answers are the
   request's ``outcome`` and the list ``effects`` (connect this, close that, wake this request, tell the listeners); the
   shell carries the effects out after it has let go of the lock.
3. A :class:`~.slots.Slot` changes its state only along the edges of ``slot.TRANSITIONS``.
4. ONE-END: a :class:`~.queue.Request` ends exactly once: served (a slot), failed (an error) or gone. What was
   meant for one that is gone is returned.
5. PERMIT-UNTIL-CLOSED: the number of permits taken *is* ``len(core.all_slots)``: there is no counter that could drift.
6. A step may be cut off between any two bytecodes (KeyboardInterrupt). The shell then calls ``repair.repair``; what
   the interrupted thread had in its hands is found by ``repair.audit`` in the next sweep: the register of slots holds
   them weakly, so a slot that nobody will deal with any more is finalized, and reports itself.
7. ``invariants.check(core)`` passes after each look: nobody waits while capacity is free, and ``min_size`` is kept.

One shortcut is allowed: the shells take an idle slot from an endpoint's ``idle`` deque, and put one back, without the
lock (deque and dict operations are atomic). They may do so only for an exclusive connection in its best days
(``now < slot.fresh_until``). ONE-OWNER: only the thread that has popped a slot writes its fields. ENQUEUE-THEN-LOOK: a
request enters the queue and then looks at the idle slots a last time, and whoever puts a slot back looks for requests
afterwards, so at least one of the two sees the other.
"""
