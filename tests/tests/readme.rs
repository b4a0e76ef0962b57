//! The README's examples are true.

use trine_trainer::config::{Config, File, Typed};

#[test]
fn the_readmes_configuration_loads() {
    let readme = include_str!("../../README.md");
    let blocks: Vec<&str> = readme.split("```toml\n").skip(1).collect();
    let mut loaded = 0;
    for block in &blocks {
        let text = block.split("```").next().expect("a block ends").to_owned();
        let file = Some(File { name: "README.md".into(), text });
        let config = Config::load(&Typed { file, ..Typed::default() });
        config.unwrap_or_else(|error| panic!("{error}"));
        loaded += 1;
    }
    assert!(loaded >= 1, "the README shows no configuration");
}
