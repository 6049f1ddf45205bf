-- depends_on: {{ ref('repairs') }}
select
    repair_id,
    bike_id,
    fault,
    opened_at,
    closed_at,
    closed_at is null as is_open,
    coalesce(cost_cents, 0) as cost_cents
from {{ source('operations', 'repairs') }}
