//! Connections that are no good: junk, silence, lies. They are ends of the simulated network without an engine behind them, and
//! must change nothing for anybody else.
