//! Who is next, what waits for its ACK, what was seen before, who is silent: each against a plain table.

use arbitrary::Unstructured;

use super::next;
use crate::protocol::frame::MsgId;
use crate::protocol::{
    Circle, Due, Identity, Liveness, LivenessConfig, Overdue, Pending, PendingConfig, Waiting, Windows,
};

/// By how much more often one had its turn than another, since both could take one: now, at least, at most.
type Lead = (i32, i32, i32);

/// Turns of a circle whose members come, go and stall: of any two that could take one all the time, none is ahead by two.
pub(super) fn circle(data: &[u8]) {
    const KEYS: usize = 12;
    let mut input = Unstructured::new(data);
    let mut circle = Circle::new();
    let (mut member, mut stalled) = ([false; KEYS], [false; KEYS]);
    let mut leads: [[Lead; KEYS]; KEYS] = Default::default();
    loop {
        let (step, key) = next!(input, (u8, u8));
        let key = usize::from(key) % KEYS;
        let changed = match step % 8 {
            0 | 1 => {
                assert_eq!(circle.insert(key), !member[key]);
                !std::mem::replace(&mut member[key], true)
            }
            2 => {
                assert_eq!(circle.remove(key), member[key]);
                std::mem::take(&mut member[key])
            }
            3 => {
                stalled[key] ^= true;
                circle.begin_round();
                true
            }
            _ => false,
        };
        if changed {
            (0..KEYS).for_each(|other| (leads[key][other], leads[other][key]) = Default::default());
        }
        let count = member.iter().filter(|member| **member).count();
        assert_eq!((circle.is_empty(), circle.only().is_some()), (count == 0, count == 1));
        let can = |key: usize| member[key] && !stalled[key];
        let Some(found) = circle.next(|key| !stalled[key]) else {
            assert!(!(0..KEYS).any(can), "nobody's turn, and somebody could take one");
            continue;
        };
        assert!(can(found));
        for other in (0..KEYS).filter(|other| *other != found && can(*other)) {
            for (one, another, step) in [(found, other, 1), (other, found, -1)] {
                let (now, least, most) = &mut leads[one][another];
                *now += step;
                (*least, *most) = ((*least).min(*now), (*most).max(*now));
                assert!(*most - *least <= 1, "{one} and {another} are not served alike");
            }
        }
    }
}

fn id(number: u8) -> MsgId {
    MsgId([number; 16])
}

/// What waits for its ACK, against a table that is looked through in every step.
pub(super) fn pending(data: &[u8]) {
    struct Row {
        number: u8,
        deadline_ns: u64,
        attempts: u32,
    }
    const CAPACITY: usize = 20;
    let config = PendingConfig { resend_ns: 100, attempts_max: 3, capacity: CAPACITY };
    let mut input = Unstructured::new(data);
    let mut pending = Pending::new(config);
    let mut model: Vec<Row> = Vec::new();
    let (mut now_ns, mut paused) = (0, false);
    loop {
        let (step, number, pass_ns) = next!(input, (u8, u8, u8));
        now_ns += u64::from(pass_ns);
        if paused {
            model.iter_mut().for_each(|row| row.deadline_ns += u64::from(pass_ns));
        }
        match step % 8 {
            0..3 => {
                let fits = model.len() < CAPACITY && model.iter().all(|row| row.number != number);
                let waiting = Waiting { msg_id: id(number), attempts: 1, message: number };
                assert_eq!(pending.insert(waiting, now_ns).is_ok(), fits);
                if fits {
                    model.push(Row { number, deadline_ns: now_ns + 100, attempts: 1 });
                }
            }
            3 => {
                let known = model.iter().position(|row| row.number == number).map(|at| model.remove(at).number);
                let acknowledged = pending.acknowledge(&id(number), now_ns);
                assert_eq!(acknowledged.map(|(message, _)| message), known);
            }
            4 => {
                paused = !paused;
                if paused { pending.pause(now_ns) } else { pending.resume(now_ns) }
            }
            5 if number < 16 => {
                let mut drained: Vec<_> = pending.drain().into_iter().map(|row| (row.message, row.attempts)).collect();
                let mut expected: Vec<_> = model.drain(..).map(|row| (row.number, row.attempts)).collect();
                drained.sort_unstable();
                expected.sort_unstable();
                assert_eq!(drained, expected);
            }
            _ => {
                let (mut found, mut expected) = (Vec::new(), Vec::new());
                while let Some(overdue) = pending.poll(now_ns) {
                    found.push(match overdue {
                        Overdue::Resend(_, number) => (*number, true),
                        Overdue::Expired(waiting) => (waiting.message, false),
                    });
                }
                if !paused {
                    for row in model.iter_mut().filter(|row| row.deadline_ns <= now_ns) {
                        expected.push((row.number, row.attempts < 3));
                        (row.deadline_ns, row.attempts) = (now_ns + 100, row.attempts + 1);
                    }
                    model.retain(|row| row.attempts <= 3);
                }
                found.sort_unstable();
                expected.sort_unstable();
                assert_eq!(found, expected);
            }
        }
        let first_ns = model.iter().map(|row| row.deadline_ns).min().filter(|_| !paused);
        assert_eq!((pending.len(), pending.deadline_ns()), (model.len(), first_ns.unwrap_or(u64::MAX)));
    }
}

/// Windows of ids and of peers forget their oldest, and nothing else.
pub(super) fn window(data: &[u8]) {
    const IDS: usize = 8;
    const PEERS: usize = 3;
    let mut input = Unstructured::new(data);
    let mut windows = Windows::new(IDS, PEERS);
    // The peer heard of last is last, with its ids in order.
    let mut model: Vec<(u8, Vec<u8>)> = Vec::new();
    loop {
        let (peer, number) = next!(input, (u8, u8));
        let (peer, number) = (peer % 6, number % 24);
        let mut known = match model.iter().position(|(known, _)| *known == peer) {
            Some(at) => model.remove(at),
            None => {
                if model.len() == PEERS {
                    model.remove(0);
                }
                (peer, Vec::new())
            }
        };
        let fresh = !known.1.contains(&number);
        if fresh {
            known.1.push(number);
            if known.1.len() > IDS {
                known.1.remove(0);
            }
        }
        model.push(known);
        assert_eq!(windows.of(&Identity::from([peer; 16])).insert(id(number)), fresh);
    }
}

/// A peer that is heard often enough is never suspect or dead, one that is not heard is; heartbeats go out in time.
pub(super) fn liveness(data: &[u8]) {
    let config = LivenessConfig { heartbeat_ns: 5_000_000, timeout_ns: 15_000_000, suspect_ns: 6_000_000 };
    let mut input = Unstructured::new(data);
    let mut liveness = Liveness::new(config, 0);
    let (mut now_ns, mut heard_ns, mut sent_ns, mut paused) = (0u64, 0u64, 0u64, false);
    loop {
        let (step, pass) = next!(input, (u8, u8));
        now_ns += u64::from(pass) * 20_000;
        match step % 6 {
            0 => {
                liveness.handle_received(now_ns);
                heard_ns = now_ns;
            }
            1 => {
                liveness.handle_sent(now_ns);
                sent_ns = now_ns;
            }
            2 if !paused => {
                liveness.pause(now_ns);
                paused = true;
            }
            3 if paused => {
                liveness.resume(now_ns);
                paused = false;
            }
            _ => {}
        }
        // Bounded: each kind is due once.
        for due in 0.. {
            assert!(due < 4, "the same is due again and again");
            match liveness.poll(now_ns) {
                None => break,
                Some(Due::Heartbeat) => {
                    assert!(now_ns - sent_ns >= config.heartbeat_ns);
                    sent_ns = now_ns;
                }
                Some(Due::Suspect) => assert!(!paused && now_ns - heard_ns >= config.suspect_ns),
                Some(Due::Dead) => {
                    assert!(!paused && now_ns - heard_ns >= config.timeout_ns);
                    assert_eq!((liveness.poll(u64::MAX - 1), liveness.deadline_ns()), (None, u64::MAX));
                    return;
                }
            }
        }
        assert!(liveness.deadline_ns() > now_ns, "due, and not told");
    }
}
