//! How much of a run that fails can be left out so that it still fails: faults, processes, messages, one at a time, as long as the
//! same promise is broken. What is left is easier to read. Each step runs the seed once; there are some dozens.

use super::{Outcome, Setup, fault_names, run_with};

/// The smallest run that still breaks what `outcome` broke, as it was found; `outcome` itself if nothing can be left out.
pub fn shrink(outcome: Outcome) -> Outcome {
    let Some(broken) = outcome.violation.as_ref().map(|violation| violation.invariant) else { return outcome };
    let mut best = outcome;
    let attempt = |best: &mut Outcome, change: &dyn Fn(&mut Setup)| {
        let mut setup = best.setup.clone();
        change(&mut setup);
        let tried = run_with(best.seed, &setup);
        let smaller = setup != best.setup && tried.violation.as_ref().is_some_and(|other| other.invariant == broken);
        if smaller {
            *best = tried;
        }
        smaller
    };
    let names = fault_names();
    let fired = |best: &Outcome, at: usize| best.fired.get(at).is_none_or(|&fired| fired > 0);
    let silent: Vec<String> = (0..names.len()).filter(|at| !fired(&best, *at)).map(|at| names[at].clone()).collect();
    attempt(&mut best, &|setup| setup.without.extend_from_slice(&silent));
    for name in &names {
        if !best.setup.without.contains(name) {
            attempt(&mut best, &|setup| setup.without.push(name.clone()));
        }
    }
    for leaves in 1..4 {
        if attempt(&mut best, &|setup| setup.leaves_max = Some(leaves)) {
            break;
        }
    }
    let mut messages = 256;
    while messages > 0 && attempt(&mut best, &|setup| setup.messages_max = Some(messages)) {
        messages /= 2;
    }
    best
}
