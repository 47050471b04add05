//! The whole program on real input: FUSE mounts, loop devices, ext4, xfs, btrfs and fio.
//!
//! Needs root, `/dev/fuse`, loop devices and the programs that `bed::needs` names; what is missing
//! is a failure that says so. Each test has directories and a runtime directory of its own and takes
//! away what it has set up, also when it fails. `SHADOWSET_CYCLES` sets the number of cycles under
//! load, `SHADOWSET_KILL_ROUNDS` that of kills, `SHADOWSET_LOOPS` that of loop devices.

#![allow(clippy::expect_used, reason = "a test that cannot go on has failed")]

mod backup;
mod bed;
mod client;
mod copies;
mod crash;
mod cut;
mod cycles;
mod demo;
mod devices;
mod disk;
mod examples;
mod faults;
mod faults_files;
mod faults_silent;
mod filesystems;
mod freeze;
mod hang;
mod kill;
mod log;
mod loops;
mod machines;
mod manual;
mod mount8;
mod newcomer;
mod nth;
mod pages;
mod params;
mod polling;
mod power;
mod pressure;
mod reference;
mod refusals;
mod rehearsal;
mod samples;
mod semantics;
mod service;
mod shells;
mod silent;
mod sizes;
mod socket;
mod stall;
mod tamper;
mod terminal;
mod trial;
mod verify;
