//! Devices: which there are, and what happens to work on one that is lost.

use crate::machine::{Machine, uploaded};
use trine_gpu::{Checks, GpuError};
use trine_gpu_sim::Settings;

#[test]
fn devices_are_counted_from_nought() {
    let machine = Machine::with(&Settings { devices: 3, ..Settings::default() }, Checks::On);
    assert_eq!((machine.gpus.list().len(), machine.gpus.driver().1.major), (3, 12));
    assert_eq!(machine.gpus.device(2).unwrap().index(), 2);
    let error = machine.gpus.device(3).unwrap_err();
    assert_eq!(error.to_string(), "there is no GPU 3: this machine has GPUs 0 to 2");
}

#[test]
fn peers_are_reached_once_asked_for() {
    let machine = Machine::new(1);
    let peer = machine.gpus.device(1).unwrap();
    machine.device.reach(&peer).unwrap();
    let error = machine.device.reach(&peer).unwrap_err().to_string();
    assert!(
        error.starts_with("cannot reach GPU 1 from GPU 0: cuCtxEnablePeerAccess failed"),
        "{error}"
    );
}

/// Work of a lost device fails by name, and dropping what is on it does not.
#[test]
fn a_lost_device_fails_by_name() {
    let machine = Machine::new(1);
    let stream = machine.stream("compute");
    let mut x = uploaded(&stream, "x", &[1.0f32; 8]);
    machine.sim.lose_device(0);
    let error = stream.synchronize().unwrap_err();
    let text = "cannot record an event on the stream `compute`: cuEventRecord failed with \
                CUDA_ERROR_DEVICE_UNAVAILABLE (46): the device is lost";
    assert_eq!(error.to_string(), text);
    let error = stream.fill(x.span_mut(), 0).unwrap_err();
    assert!(matches!(error, GpuError::Call { source, .. } if source.code == 46));
    drop((x, stream));
}
