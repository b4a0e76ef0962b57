//! How long messages and collectives take, by the levels of the network that a group crosses.

use crate::{Cluster, DeviceConstants, Level, Link};

/// A group of ranks that stand `stride` devices apart.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Group {
    /// How many ranks.
    pub size: usize,
    /// Devices from one to the next.
    pub stride: usize,
}

/// The network as collectives see it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Network<'a> {
    pub(crate) cluster: &'a Cluster,
    pub(crate) device: &'a DeviceConstants,
}

impl Network<'_> {
    fn bandwidth(&self, level: &Level) -> f64 {
        let efficiency = match level.link {
            Link::Inside => self.device.inside_efficiency,
            Link::Between => self.device.between_efficiency,
        };
        level.bandwidth * efficiency / level.contention
    }

    /// Seconds of a message from a rank of a chain to the next, α + n/β: the mean over all but the last. Some hops stay
    /// inside a unit of a level, others cross to the next.
    pub(crate) fn message_s(&self, bytes: f64, chain: Group) -> f64 {
        let Some(hops) = chain.size.checked_sub(1).filter(|hops| *hops > 0) else { return 0.0 };
        let (mut seconds, mut left) = (0.0, hops);
        for (index, level) in self.cluster.levels.iter().enumerate() {
            let outermost = index + 1 == self.cluster.levels.len();
            let crossing = (hops * chain.stride / level.devices).min(left);
            let inside = if outermost { left } else { left - crossing };
            seconds += inside as f64 * (level.latency + bytes / self.bandwidth(level));
            left -= inside;
        }
        seconds / hops as f64
    }

    /// Seconds of an all-gather or a reduce-scatter of `bytes` (the whole tensor): rings through all members, as NCCL
    /// and RCCL build them. (P − 1) / P of the tensor passes between any two neighbours; the k members inside a unit
    /// share out what crosses to the next unit among their k links (k rings). The slowest level decides. A ring waits
    /// for every member in turn, for each of the `calls` that the bytes are cut into.
    pub(crate) fn gather_s(&self, bytes: f64, calls: f64, group: Group) -> f64 {
        let (transfer, ring, _) = self.parts_s(bytes, group);
        transfer + calls * ring
    }

    /// Seconds of an all-reduce: a reduce-scatter and an all-gather around rings, or up and down a tree, whichever
    /// waits less.
    pub(crate) fn all_reduce_s(&self, bytes: f64, calls: f64, group: Group) -> f64 {
        let (transfer, ring, tree) = self.parts_s(bytes, group);
        2.0 * (transfer + calls * ring.min(tree))
    }

    /// Transfer of a reduce-scatter, latency of its rings, latency of a tree between nodes.
    fn parts_s(&self, bytes: f64, group: Group) -> (f64, f64, f64) {
        if group.size <= 1 {
            return (0.0, 0.0, 0.0);
        }
        let around = (group.size - 1) as f64 / group.size as f64;
        let (mut slowest, mut ring, mut tree) = (0.0f64, 0.0, 0.0);
        let mut inside = 1;
        for (index, level) in self.cluster.levels.iter().enumerate() {
            let outermost = index + 1 == self.cluster.levels.len();
            let holds = if outermost {
                group.size
            } else {
                (level.devices / group.stride).clamp(1, group.size)
            };
            let units = holds as f64 / inside as f64;
            if units > 1.0 {
                let share = around * bytes / inside as f64;
                slowest = slowest.max(share / self.bandwidth(level));
                ring += level.latency * (units - 1.0);
                tree += level.latency
                    * match level.link {
                        Link::Inside => units - 1.0,
                        Link::Between => units.log2(),
                    };
            }
            inside = inside.max(holds);
            if inside == group.size {
                break;
            }
        }
        (slowest, ring, tree)
    }

    /// How many nodes hold so many devices.
    pub(crate) fn nodes(&self, devices: usize) -> usize {
        let inside = |level: &&Level| level.link == Link::Inside;
        let node = self.cluster.levels.iter().filter(inside).map(|level| level.devices).max();
        devices.div_ceil(node.unwrap_or(1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Constants, cluster};

    #[test]
    fn collectives_follow_the_ring_and_the_levels() {
        let all = cluster::clusters(&[]).unwrap();
        let constants = Constants::built_in().unwrap();
        let ideal = DeviceConstants {
            inside_efficiency: 1.0,
            between_efficiency: 1.0,
            ..constants.device["a100"]
        };
        let mut machine = cluster::find(&all, "a100-80gb").unwrap().clone();
        machine.levels.iter_mut().for_each(|level| level.latency = 0.0);
        let network = Network { cluster: &machine, device: &ideal };
        // Inside a node: 2 (P − 1) / P · n / β.
        let node = network.all_reduce_s(8e9, 1.0, Group { size: 8, stride: 1 });
        assert!((node - 2.0 * 7.0 / 8.0 * 8e9 / 300e9).abs() < 1e-12);
        // Thirty-two whole nodes: eight rings through all, each over its own link between nodes.
        let nodes = network.all_reduce_s(8e9, 1.0, Group { size: 256, stride: 1 });
        assert!((nodes - 2.0 * 255.0 / 256.0 * 1e9 / 25e9).abs() < 1e-12);
        // One rank a node: everything crosses its one link.
        let apart = network.gather_s(8e9, 1.0, Group { size: 32, stride: 8 });
        assert!((apart - 31.0 / 32.0 * 8e9 / 25e9).abs() < 1e-12);
        assert_eq!(network.gather_s(8e9, 1.0, Group { size: 1, stride: 8 }), 0.0);
        // From node to node; to the other half of a node; of three such hops, one to another node.
        let message = |size: usize, stride: usize| network.message_s(75e9, Group { size, stride });
        assert!((message(2, 8) - 3.0).abs() < 1e-12);
        assert!((message(2, 4) - 0.25).abs() < 1e-12);
        assert!((message(4, 4) - (0.25 + 3.0 + 0.25) / 3.0).abs() < 1e-12);
        assert_eq!(message(1, 8), 0.0);
        assert_eq!(network.nodes(20), 3);
    }
}
