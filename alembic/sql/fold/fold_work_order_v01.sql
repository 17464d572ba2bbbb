-- os_core.fold_work_order: the aggregate of the fold. Call it as fold_work_order(event ORDER BY event.work_order_seq).
CREATE OR REPLACE AGGREGATE os_core.fold_work_order(os_core.work_order_ledger) (
  SFUNC = os_core.apply_work_order_event,
  STYPE = os_core.work_orders_current
);
