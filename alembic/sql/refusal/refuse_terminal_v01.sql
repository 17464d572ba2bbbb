-- os_core.refuse_terminal: raises InvalidTransition if the work order has ended: no new lease or attempt (contract sections 4 and 8).
-- Called before any other rule is looked at: append would refuse the event, too, but later.
CREATE OR REPLACE FUNCTION os_core.refuse_terminal(p_state os_core.work_orders_current, p_event_type text)
RETURNS void
LANGUAGE plpgsql
VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
  IF os_core.is_terminal(p_state.work_order_status) THEN
    PERFORM os_core.refuse(
      'SL007',
      pg_catalog.format('work order %s is %s: nothing follows', p_state.work_order_id, p_state.work_order_status),
      pg_catalog.jsonb_build_object(
        'work_order_id', p_state.work_order_id, 'work_order_status', p_state.work_order_status, 'event_type', p_event_type
      )
    );
  END IF;
END;
$$;
