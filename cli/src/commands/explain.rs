//! `lichen explain`: what is counted, in words. Asks nobody.

use std::process::ExitCode;

use lichen_api::{DropExplanation, drop_explanations};

use crate::args::{ExplainCommand, Output};
use crate::{Outcome, output};

/// No such reason.
#[derive(Debug, thiserror::Error)]
#[error("there is no reason `{0}` to drop a frame; list them: lichen explain drop")]
struct Unknown(String);

/// Explains one reason to drop a frame, or lists all.
pub(crate) fn explain(command: &ExplainCommand, format: Output) -> Outcome {
    let ExplainCommand::Drop { reason } = command;
    let all = drop_explanations();
    let Some(reason) = reason else {
        match format {
            Output::Json => output::json(&all)?,
            Output::Table => output::table(
                &["REASON", "MEANING"],
                &all.iter()
                    .map(|it| vec![it.reason.clone(), it.meaning.clone()])
                    .collect::<Vec<_>>(),
            )?,
        }
        return Ok(ExitCode::SUCCESS);
    };
    let found =
        all.into_iter().find(|it| it.reason.eq_ignore_ascii_case(reason)).ok_or_else(|| {
            Unknown(reason.chars().take(64).collect::<String>().escape_default().to_string())
        })?;
    match format {
        Output::Json => output::json(&found)?,
        Output::Table => {
            let DropExplanation { reason, section, meaning, remedy } = found;
            output::line(&format!("{reason} ({})", section.to_lowercase()))?;
            output::line(&format!("  meaning: {meaning}"))?;
            output::line(&format!("  to do:   {remedy}"))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}
