//! To come.
#[derive(clap::Args)]
pub struct Args {}

pub fn main(_: Args) -> anyhow::Result<()> {
    anyhow::bail!("not there yet")
}
