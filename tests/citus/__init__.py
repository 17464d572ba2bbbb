"""On a Citus cluster, where one is given: SELENE_TEST_CITUS=coordinator:port,worker:port,..."""
