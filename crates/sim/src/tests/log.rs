//! One small run in full, so that a change of behaviour is seen for what it is.

use std::fmt::Write as _;

use super::*;

#[test]
fn twelve_requests_on_two_instances() {
    // Three documents; the second half comes while the first is being served.
    let workload = by_hand(&[
        (0, 1_100, 12, 1),
        (10, 1_200, 30, 2),
        (30, 1_150, 8, 1),
        (60, 700, 20, 3),
        (90, 1_300, 5, 2),
        (100, 1_100, 12, 1),
        (180, 1_030, 1, 1),
        (200, 700, 40, 3),
        (205, 1_200, 3, 2),
        (210, 520, 60, 4),
        (400, 1_100, 12, 1),
        (900, 700, 2, 3),
    ]);
    let policy = "load-cache:alpha=0.7,beta=0.3";
    let mut config = SimConfig { network_delay_s: 0.002, ..cluster(2, policy) };
    config.engine.max_num_seqs = 2;
    let outcome = run(&config, &workload);
    let ms = |at: Timestamp| at.as_nanos() as f64 / 1e6;
    let mut log =
        String::from("id to reason        arrival  scheduled  first tok        end cached\n");
    for record in &outcome.records {
        let RequestRecord { id, reason, arrival, end, .. } = record;
        let (scheduled, first) = (record.scheduled.unwrap(), record.first_token.unwrap());
        writeln!(
            log,
            "{:>2} {:>2} {reason:<11} {:>9.3} {:>10.3} {:>10.3} {:>10.3} {:>6}",
            id.0,
            record.instance.unwrap().0,
            ms(*arrival),
            ms(scheduled),
            ms(first),
            ms(*end),
            record.cached_tokens.unwrap().0,
        )
        .unwrap();
    }
    insta::assert_snapshot!(log, @r"
    id to reason        arrival  scheduled  first tok        end cached
     0  0 load-score      0.000      2.000     47.952    117.709      0
     1  1 load-score     10.000     12.000     62.077    267.598      0
     2  0 cache-score    30.000     45.952     60.613    105.254   1088
     3  1 load-score     60.000     66.277    102.558    222.759      0
     4  1 cache-score    90.000    220.759    235.723    261.394   1200
     5  0 cache-score   100.000    103.254    117.709    185.745   1088
     6  0 cache-score   180.000    183.745    191.778    191.778   1024
     7  1 cache-score   200.000    259.394    273.640    513.078    688
     8  1 cache-score   205.000    265.598    279.861    292.508   1184
     9  0 load-score    210.000    212.000    234.752    596.822      0
    10  0 cache-score   400.000    403.516    417.791    486.947   1088
    11  1 cache-score   900.000    902.000    910.042    916.166    688
    ");
}
