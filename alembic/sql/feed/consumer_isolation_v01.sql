-- os_core.work_order_feed_consumers: one tenant at a time, with one exception (contract sections 10 and 16).
-- In a transaction without a tenant, a member of selene_feed sees the rows of all tenants, in the columns that are granted to it.
-- A relay needs that to know which tenants to enter. Nobody writes without a tenant.
ALTER TABLE os_core.work_order_feed_consumers ENABLE ROW LEVEL SECURITY;
ALTER TABLE os_core.work_order_feed_consumers FORCE ROW LEVEL SECURITY;

DROP POLICY IF EXISTS tenant_admit ON os_core.work_order_feed_consumers;
CREATE POLICY tenant_admit ON os_core.work_order_feed_consumers
AS PERMISSIVE FOR ALL TO PUBLIC
USING (tenant_id = current_setting('selene.tenant_id', TRUE))
WITH CHECK (tenant_id = current_setting('selene.tenant_id', TRUE) OR os_core.no_tenant(tenant_id));

DROP POLICY IF EXISTS feed_list ON os_core.work_order_feed_consumers;
CREATE POLICY feed_list ON os_core.work_order_feed_consumers
AS PERMISSIVE FOR SELECT TO selene_feed
USING (NULLIF(current_setting('selene.tenant_id', TRUE), '') IS NULL);

DROP POLICY IF EXISTS tenant_confine ON os_core.work_order_feed_consumers;
CREATE POLICY tenant_confine ON os_core.work_order_feed_consumers
AS RESTRICTIVE FOR ALL TO PUBLIC
USING (
  tenant_id = current_setting('selene.tenant_id', TRUE)
  OR (NULLIF(current_setting('selene.tenant_id', TRUE), '') IS NULL AND pg_has_role('selene_feed', 'USAGE'))
)
WITH CHECK (tenant_id = current_setting('selene.tenant_id', TRUE) OR os_core.no_tenant(tenant_id));
