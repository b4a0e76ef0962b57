//! The checks of a machine with a GPU, rehearsed on simulated ones.

use std::path::Path;
use std::process::{Command, Output};
use trine_tests::check::{Outcome, PARTS, Report};

fn check(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_gpu_check")).args(args).output().unwrap()
}

#[test]
fn all_parts_pass_on_simulated_gpus() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("report.json");
    let output = check(&["--simulated", "--out", out.to_str().unwrap()]);
    let table = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{table}");
    let report: Report = serde_json::from_slice(&std::fs::read(out).unwrap()).unwrap();
    let lines: String = report.parts.iter().map(|row| row.line() + "\n").collect();
    assert_eq!(lines, table);
    let seen = |name: &str| match &report.parts.iter().find(|row| row.part == name).unwrap().outcome
    {
        Outcome::Passed(seen) => seen.clone(),
        other => panic!("{name}: {other:?}"),
    };
    for (part, words) in [
        ("doctor", "simulated GPU, by CUDA 12.0"),
        ("kernels", "operations agree with the CPU's"),
        ("communicator", "to the bit; NCCL among 2 GPUs"),
        ("curve", "20 steps from 7.0"),
        ("layout", "equal to one rank on the GPU, to the bit"),
    ] {
        assert!(seen(part).contains(words), "{part}: {}", seen(part));
    }
    assert_eq!(report.parts.len(), PARTS.len());
    assert!(table.contains("sanitizer     did not run"), "{table}");
}

#[test]
fn a_part_that_cannot_pass_fails_and_says_why() {
    let folder = tempfile::tempdir().unwrap();
    let nowhere = folder.path().to_str().unwrap();
    let output = check(&["--part", "kernels", "--part", "sanitizer", "--gpu-libraries", nowhere]);
    let table = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(output.status.code(), Some(1), "{table}");
    let looked = "the CUDA driver was not found; looked for libcuda.so.1";
    assert!(table.starts_with("kernels       FAILED") && table.contains(looked), "{table}");
    let output = check(&["--part", "everything"]);
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2), "{errors}");
    assert!(errors.contains("the parts are doctor, kernels, communicator"), "{errors}");
}

/// A program in place of compute-sanitizer, which is given what that would get.
fn sanitizer(folder: &Path, script: &str) -> Output {
    let path = folder.join("sanitizer");
    std::fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(&path, mode).unwrap();
    check(&["--simulated", "--part", "sanitizer", "--sanitizer", path.to_str().unwrap()])
}

#[test]
fn what_a_sanitizer_finds_fails_the_part() {
    let folder = tempfile::tempdir().unwrap();
    let row = r#"{"part":"kernels","seconds":1,"outcome":"passed","seen":"3 calls"}"#;
    let summary = "echo '========= ERROR SUMMARY: 0 errors'";
    let asked =
        r#"[ "$1 $2 $3 $4 $6 $7" = "--tool memcheck --error-exitcode 99 --alone kernels" ]"#;
    let output = sanitizer(folder.path(), &format!("{asked} || exit 3; echo '{row}'; {summary}"));
    let table = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{table}");
    assert!(table.contains("3 calls; ERROR SUMMARY: 0 errors"), "{table}");
    let found = "echo '========= Invalid __global__ read of size 4 bytes'; exit 99";
    let output = sanitizer(folder.path(), &format!("echo '{row}'; {found}"));
    let table = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(output.status.code(), Some(1), "{table}");
    assert!(table.contains("exit status: 99: Invalid __global__ read"), "{table}");
    let output = check(&["--part", "sanitizer", "--sanitizer", "no/such/program"]);
    let table = String::from_utf8_lossy(&output.stdout).into_owned();
    // Nothing was checked, which is no success.
    assert_eq!(output.status.code(), Some(1), "{table}");
    assert!(table.contains("did not run") && table.contains("no/such/program"), "{table}");
}
