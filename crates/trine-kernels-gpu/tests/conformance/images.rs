//! The compiled kernels on a driver that compares their arguments with the sources.

use crate::machine::Machine;
use std::collections::BTreeSet;
use trine_kernels_gpu::{IMAGES, Kernels};

/// The simulated driver compares each kernel's arguments in the image with those of its source.
#[test]
fn a_driver_takes_all_compiled_kernels() {
    let machine = Machine::new(0);
    let stream = machine.ops.stream();
    let names = |kernels: &Kernels| kernels.names().map(str::to_owned).collect::<BTreeSet<_>>();
    let committed = Kernels::load(stream, IMAGES.iter().map(|image| image.ptx)).unwrap();
    let compiled = Kernels::load(stream, [machine.sim.image().as_str()]).unwrap();
    assert_eq!(names(&committed), names(&compiled));
    assert!(names(&committed).contains("attention_dkv_128"));
    machine.is_clean();
}

/// An image of an earlier source, in which a kernel took something else.
#[test]
fn a_stale_image_is_refused() {
    let machine = Machine::new(0);
    let image = IMAGES.iter().find(|image| image.source == "attention_tiles.cu").unwrap();
    let stale = image.ptx.replace(".b8 attention_64_param_6[96]", ".b8 attention_64_param_6[92]");
    assert_ne!(stale, image.ptx);
    let error = Kernels::load(machine.ops.stream(), [stale.as_str()]).unwrap_err().to_string();
    assert!(error.starts_with("cannot find the kernel `attention_64` on GPU 0"), "{error}");
    assert!(machine.sim.reports()[0].contains("the image is stale"));
}
