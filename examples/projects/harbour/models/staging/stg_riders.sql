-- depends_on: {{ ref('riders') }}
select
    rider_id,
    first_name,
    plan_id,
    home_station_id,
    joined_on,
    marketing_opt_in as accepts_marketing,
    updated_at
from {{ source('operations', 'riders') }}
