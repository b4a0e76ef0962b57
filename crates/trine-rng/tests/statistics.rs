//! Moments and tails of the distributions, and golden values that pin the streams for good.

use trine_rng::Stream;

#[test]
fn golden_values_never_change() {
    let stream = Stream::new(1234, "golden");
    assert_eq!(stream.key(), 0x4326_0bb1_7cb2_cb18);
    assert_eq!(stream.block([1, 2, 3, 4]), [0x352a_c1b2, 0xbea9_c153, 0xeec5_ba37, 0x26e3_81e8]);
    assert_eq!(
        [0, 1, 2, 3, 1 << 40].map(|i| stream.normal(i).to_bits()),
        [0x3e95_9430, 0x3f33_9669, 0x3ecf_5680, 0x3faf_f5de, 0x3ed5_fe68]
    );
    assert_eq!(
        [0, 1, 1 << 40].map(|i| stream.uniform(i).to_bits()),
        [0x3f3f_cc3f, 0x3e3f_b060, 0x3eb5_2092]
    );
}

#[test]
fn normals_have_the_moments_of_the_normal_distribution() {
    const N: usize = 400_000;
    let mut values = vec![0.0; N];
    Stream::new(5, "moments").fill_normal(17, 1.0, &mut values);
    let moment =
        |power: i32| values.iter().map(|&z| f64::from(z).powi(power)).sum::<f64>() / N as f64;
    // Five standard errors of each moment.
    let error = |variance: f64| 5.0 * (variance / N as f64).sqrt();
    assert!(moment(1).abs() < error(1.0));
    assert!((moment(2) - 1.0).abs() < error(2.0));
    assert!(moment(3).abs() < error(15.0));
    assert!((moment(4) - 3.0).abs() < error(96.0));
    let beyond = values.iter().filter(|z| z.abs() > 1.959_964).count() as f64 / N as f64;
    assert!((beyond - 0.05).abs() < error(0.05 * 0.95));
    // Neighbours come from one block or from adjacent ones: no correlation either way.
    let neighbours: f64 = values.windows(2).map(|w| f64::from(w[0]) * f64::from(w[1])).sum();
    assert!((neighbours / N as f64).abs() < error(1.0));
}

#[test]
fn uniforms_fill_the_unit_interval() {
    const N: u64 = 200_000;
    let stream = Stream::new(6, "uniform");
    let mut bins = [0_f64; 50];
    for index in 0..N {
        let u = stream.uniform(index);
        assert!((0.0..1.0).contains(&u));
        bins[(u * 50.0) as usize] += 1.0;
    }
    let expected = N as f64 / 50.0;
    let chi2: f64 = bins.iter().map(|c| (c - expected).powi(2) / expected).sum();
    // 49 degrees of freedom: mean 49, standard deviation 9.9.
    assert!((15.0..100.0).contains(&chi2), "chi² = {chi2}");
}

#[test]
fn masks_drop_the_asked_share() {
    const N: usize = 300_000;
    let mut bits = vec![0; N];
    Stream::new(7, "mask").fill_bits(11, 3, 0, &mut bits);
    let threshold = (0.1 * 4_294_967_296.0) as u32;
    let dropped = bits.iter().filter(|&&word| word < threshold).count() as f64 / N as f64;
    assert!((dropped - 0.1).abs() < 5.0 * (0.09 / N as f64).sqrt(), "{dropped}");
}
