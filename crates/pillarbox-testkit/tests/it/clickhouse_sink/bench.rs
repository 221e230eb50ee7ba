//! How fast the encoder is; run with `--release --run-ignored only --no-capture`.

use super::*;

#[tokio::test]
#[ignore = "a measurement"]
async fn encode_rows_per_second() -> Result<()> {
    let server = Server::start(Flavour::V18).await?;
    let sink = sink(&server, "events")?;
    sink.create(&Default::default()).await?;
    let plan = sink.prepare(&outbox()).await?;
    let event = Event { event_context: vec![b'x'; 314], ..Event::at(NOON_US) };
    let owned: Vec<_> = plan.columns().iter().map(|column| event.field(column)).collect();
    let fields: Vec<_> = owned.iter().map(Option::as_deref).collect();
    for _ in 0..3 {
        let started = std::time::Instant::now();
        let mut encoder = plan.encoder(1);
        for id in 0..500_000 {
            encoder.push(&Row { at: Cut { tx: 700, id }, fields: &fields })?;
        }
        let blocks = encoder.finish();
        let took = started.elapsed();
        println!("{} rows in {took:?}: {:.0} rows/s", blocks[0].block.rows, 500_000.0 / took.as_secs_f64());
    }
    Ok(())
}
