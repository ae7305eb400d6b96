//! `aiomsg completions` and `aiomsg man`: what shells and manual readers need, made from the same description of the
//! command line that parses it, so that they cannot be out of date.

use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::{Args, Command};
use clap_complete::Shell;

use crate::exit::Exit;
use crate::terminal::print;

/// The options of `aiomsg completions`.
#[derive(Args, Debug)]
#[command(after_help = "For bash: aiomsg completions bash > ~/.local/share/bash-completion/completions/aiomsg
For zsh:  aiomsg completions zsh > a folder of $fpath, as _aiomsg
For fish: aiomsg completions fish > ~/.config/fish/completions/aiomsg.fish")]
pub(crate) struct CompletionsOptions {
    /// For which shell
    shell: Shell,
}

/// The options of `aiomsg man`.
#[derive(Args, Debug)]
#[command(after_help = "To read: aiomsg man | man -l -     To install: aiomsg man /usr/local/share/man/man1")]
pub(crate) struct ManOptions {
    /// Write a page for each command into this folder, and not the first page to standard output
    folder: Option<PathBuf>,
}

/// Prints the completions of one shell.
pub(crate) fn completions(options: &CompletionsOptions, mut command: Command) -> Result<Exit> {
    let mut script = Vec::new();
    clap_complete::generate(options.shell, &mut command, "aiomsg", &mut script);
    print(script)?;
    Ok(Exit::Done)
}

/// Prints the manual page, or writes all of them.
pub(crate) fn man(options: &ManOptions, command: Command) -> Result<Exit> {
    let Some(folder) = &options.folder else {
        let mut page = Vec::new();
        clap_mangen::Man::new(command).render(&mut page).context("cannot render the page")?;
        print(page)?;
        return Ok(Exit::Done);
    };
    std::fs::create_dir_all(folder)
        .and_then(|()| clap_mangen::generate_to(command, folder))
        .with_context(|| format!("cannot write pages into {}", folder.display()))?;
    Ok(Exit::Done)
}
